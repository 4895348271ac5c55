//! A connection to an echo server with traffic in both directions all the time, every byte of which is checked.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use sandbox::wait;

/// Bytes written at once: no divisor of anything, so that no two chunks begin alike in a segment.
const CHUNK: usize = 16_381;

/// One that is going on.
#[derive(Debug)]
pub(crate) struct Talk {
    name: String,
    stream: TcpStream,
    returned: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    writer: JoinHandle<io::Result<u64>>,
    reader: JoinHandle<anyhow::Result<u64>>,
}

impl Talk {
    /// Begins to send, and to check what comes back. `name` is for errors and chooses the bytes.
    pub(crate) fn start(name: String, stream: TcpStream) -> anyhow::Result<Self> {
        let seed = name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let (returned, ending) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (output, stop) = (stream.try_clone()?, Arc::clone(&ending));
        let writer = std::thread::spawn(move || write(output, Bytes(seed), &stop));
        let (input, count) = (stream.try_clone()?, Arc::clone(&returned));
        let reader = std::thread::spawn(move || read(input, Bytes(seed), &count));
        Ok(Self { name, stream, returned, ending, writer, reader })
    }

    /// Both ends, this one first.
    pub(crate) fn ends(&self) -> io::Result<(std::net::SocketAddr, std::net::SocketAddr)> {
        Ok((self.stream.local_addr()?, self.stream.peer_addr()?))
    }

    /// Waits until `bytes` more have come back.
    pub(crate) fn goes_on(&self, bytes: u64, deadline: Duration) -> anyhow::Result<()> {
        let enough = self.returned.load(Ordering::Relaxed) + bytes;
        let what = || format!("{}: {bytes} bytes more", self.name);
        let look =
            || (self.returned.load(Ordering::Relaxed) >= enough || self.reader.is_finished()).then_some(());
        wait::until(deadline, what, look)?;
        ensure!(!self.reader.is_finished() || self.ending.load(Ordering::Relaxed), "{} has ended", self.name);
        Ok(())
    }

    /// Ends it in order. How many bytes came back, every one as it was sent, and none is missing.
    pub(crate) fn finish(self) -> anyhow::Result<u64> {
        self.ending.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a thread of {} panicked", self.name);
        let sent =
            self.writer.join().map_err(panicked)?.with_context(|| format!("{}: sending", self.name))?;
        let returned = self.reader.join().map_err(panicked)?.with_context(|| self.name.clone())?;
        ensure!(sent == returned, "{}: {returned} bytes of {sent} came back", self.name);
        Ok(returned)
    }
}

fn write(mut output: TcpStream, mut bytes: Bytes, stop: &AtomicBool) -> io::Result<u64> {
    let (mut chunk, mut sent) = (vec![0; CHUNK], 0);
    while !stop.load(Ordering::Relaxed) {
        bytes.fill(&mut chunk);
        output.write_all(&chunk)?;
        sent += CHUNK as u64;
    }
    output.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn read(mut input: TcpStream, mut bytes: Bytes, count: &AtomicU64) -> anyhow::Result<u64> {
    let (mut chunk, mut expected, mut total) = (vec![0; CHUNK], vec![0; CHUNK], 0_u64);
    loop {
        bytes.fill(&mut expected);
        let mut filled = 0;
        while filled < CHUNK {
            match input.read(&mut chunk[filled..]).with_context(|| format!("after {total} bytes"))? {
                0 => {
                    ensure!(filled == 0, "it ended in the midst of a chunk, after {total} bytes");
                    return Ok(total);
                }
                length => {
                    let same = chunk[filled..filled + length] == expected[filled..filled + length];
                    ensure!(same, "wrong bytes after {total}");
                    filled += length;
                    total += length as u64;
                    count.store(total, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Pseudo-random bytes (xorshift64, Marsaglia 2003): equal seeds give equal sequences.
struct Bytes(u64);

impl Bytes {
    fn fill(&mut self, chunk: &mut [u8]) {
        for piece in chunk.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            piece.copy_from_slice(&self.0.to_le_bytes()[..piece.len()]);
        }
    }
}
