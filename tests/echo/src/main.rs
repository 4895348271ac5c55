//! The test application: servers with the habits real ones have, a client that checks every byte, a prober as kubelet has one, and a
//! pause process.
//!
//! It knows nothing of the mesh. With the mesh's data path it has only rustls, h2 and hyper in common, for HTTPS, gRPC and the benchmark's HTTP.
#![forbid(unsafe_code)]

mod certify;
mod client;
mod dial;
mod grpc;
mod http;
mod knock;
mod load;
mod payload;
mod probe;
mod push;
mod steady;
mod tcp;
mod tls;

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
    /// Visit a unix socket.
    Knock(knock::Knock),
    /// Send to a server that does not read, and say how much was taken.
    Push(push::Push),
    /// Probe servers as kubelet does, and say what came of each.
    Probe(probe::Probe),
    /// Begin connections at a fixed rate and count what becomes of them.
    Steady(steady::Steady),
    /// Send one request from a chosen port.
    Dial(dial::Dial),
    /// Make work for a server and measure it.
    Load(load::Load),
    /// Serve what loads ask for.
    Answer(load::Answer),
    /// Relay connections, and nothing else.
    Relay(load::Relay),
    /// Make certificates.
    Certify(certify::Certify),
    /// Wait for ever.
    Pause,
}

#[derive(clap::Args)]
struct Serve {
    /// HTTP/1.1: `/` says who answers whom, `/healthz` is `ok`, `/headers` returns the request's head.
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// The same over TLS, with a certificate that nobody has signed.
    #[arg(long, value_name = "PORT")]
    https: Vec<u16>,
    /// gRPC's health service, in plaintext: every service it is asked for is serving.
    #[arg(long, value_name = "PORT")]
    grpc: Vec<u16>,
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
        Some(Command::Knock(knock)) => knock.run(),
        Some(Command::Push(push)) => push.run(),
        Some(Command::Probe(probe)) => probe.run(),
        Some(Command::Steady(steady)) => steady.run(),
        Some(Command::Dial(dial)) => dial.run(),
        Some(Command::Load(load)) => load.run(),
        Some(Command::Answer(answer)) => answer.run(),
        Some(Command::Relay(relay)) => relay.run(),
        Some(Command::Certify(certify)) => certify.run(),
        Some(Command::Pause) => pause(),
    }
}

impl Serve {
    fn run(self) -> anyhow::Result<()> {
        let services: [(&[u16], tcp::Handler); 7] = [
            (&self.port, http::serve),
            (&self.https, tls::serve),
            (&self.grpc, grpc::serve),
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
