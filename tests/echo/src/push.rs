//! A writer against a reader that does not read: where back-pressure holds, it has to stop soon.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Send to a server that does not read, until nothing is taken for a while or the limit is reached.
#[derive(clap::Args)]
pub(crate) struct Push {
    /// A silent service.
    target: SocketAddr,
    /// Stop after that many bytes.
    #[arg(long, default_value_t = 1 << 30)]
    limit: usize,
    /// Milliseconds without progress after which the writer is held back.
    #[arg(long, default_value_t = 1000)]
    stall: u64,
}

impl Push {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(self.target)?;
        stream.set_write_timeout(Some(Duration::from_millis(self.stall)))?;
        let chunk = vec![0x5a; 64 << 10];
        let mut taken = 0;
        while taken < self.limit {
            match stream.write(&chunk) {
                Ok(count) => taken += count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        println!("{taken}");
        Ok(())
    }
}
