//! `--state`: where control keeps what lasts, for the commands that work on it beside control.

use std::path::PathBuf;

/// Where control's state is.
#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// Control's state directory.
    #[arg(long)]
    pub(super) state: PathBuf,
}
