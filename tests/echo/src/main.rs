//! The test application: servers with the habits real ones have, a client that checks every byte, and a pause process.
//!
//! It knows nothing of the mesh, and has no dependency in common with the mesh's data path.
#![forbid(unsafe_code)]

mod client;
mod http;
mod payload;
mod push;
mod tcp;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Without a command: serve on the given ports, on all addresses of both families.
#[derive(Parser)]
#[command(about, version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Make many connections and check every byte that comes back.
    Flood(client::Flood),
    /// Send to a server that does not read, and say how much was taken.
    Push(push::Push),
    /// Wait for ever.
    Pause,
}

#[derive(clap::Args)]
struct Serve {
    /// HTTP/1.1: `/` says who answers whom, `/healthz` is `ok`, `/headers` returns the request's head.
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// Sends back what it receives, until the client's end.
    #[arg(long, value_name = "PORT")]
    echo: Vec<u16>,
    /// Answers with count and checksum, but only once the client has ended its side.
    #[arg(long, value_name = "PORT")]
    sink: Vec<u16>,
    /// Accepts and never reads.
    #[arg(long, value_name = "PORT")]
    silent: Vec<u16>,
    /// Resets each connection after its first byte.
    #[arg(long, value_name = "PORT")]
    reset: Vec<u16>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        None => cli.serve.run(),
        Some(Command::Flood(flood)) => flood.run(),
        Some(Command::Push(push)) => push.run(),
        Some(Command::Pause) => pause(),
    }
}

impl Serve {
    fn run(self) -> anyhow::Result<()> {
        let services: [(&[u16], tcp::Handler); 5] = [
            (&self.port, http::serve),
            (&self.echo, tcp::echo),
            (&self.sink, tcp::sink),
            (&self.silent, tcp::keep_silent),
            (&self.reset, tcp::reset),
        ];
        for (ports, handler) in services {
            for port in ports {
                let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
                let listener =
                    TcpListener::bind(address).with_context(|| format!("listening on port {port}"))?;
                std::thread::spawn(move || tcp::accept(&listener, handler));
            }
        }
        println!("serving");
        pause()
    }
}

fn pause() -> anyhow::Result<()> {
    loop {
        std::thread::park();
    }
}
