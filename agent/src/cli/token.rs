//! `culvert token`: the credentials by which nodes' agents authenticate. Control need not run, and notices changes.

use control::tokens::Tokens;

use super::state::At;

/// What to do with tokens.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a token for a node and print it, this once; an earlier one of the node is void.
    Create {
        /// The node's name.
        node: String,
        #[command(flatten)]
        at: At,
    },
    /// List the nodes that have a token.
    List {
        #[command(flatten)]
        at: At,
    },
    /// Take a node's token back: its agent is cut off within seconds.
    Revoke {
        /// The node's name.
        node: String,
        #[command(flatten)]
        at: At,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { node, at } => println!("{}", Tokens::open(&at.state)?.create(&node)?.reveal()),
        Command::List { at } => {
            for node in Tokens::existing(&at.state)?.list()? {
                println!("{node}");
            }
        }
        Command::Revoke { node, at } => {
            anyhow::ensure!(Tokens::existing(&at.state)?.revoke(&node)?, "node {node} has no token");
        }
    }
    Ok(())
}
