//! Tells of packets that carry a mark of the mesh and are none of its own. A pod that may set marks (`NET_RAW`, `NET_ADMIN`) is exempt
//! from nothing by them; that it tries is worth a line.
//!
//! Such a pod writes its packets' source addresses itself: a line repeats what a packet says, and proves nothing about whose it is. So
//! that nobody fills the log with addresses, lines are few, and what has no line is counted.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::kernel::Kernel;
use crate::status::Board;

/// How often the kernel is asked.
const PERIOD: Duration = Duration::from_secs(5);

/// An address is named at most once in that time.
const QUIET: Duration = Duration::from_secs(60);

/// So many addresses are named within [`QUIET`], whatever comes. A node has few pods that forge marks, or one that forges addresses too.
const LINES: usize = 20;

/// A packet with a mark of ours that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forged {
    /// The address it was sent from.
    pub(crate) source: IpAddr,
    /// Whom it was for.
    pub(crate) destination: SocketAddr,
    /// Its whole mark.
    pub(crate) mark: u32,
}

/// Asks and tells until `stop`.
pub(crate) async fn tell(kernel: Kernel, board: Arc<Board>, stop: CancellationToken) {
    let mut period = tokio::time::interval(PERIOD);
    let mut lines = Lines::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        match block_in_place(|| kernel.take_forged()) {
            Ok(all) => {
                let now = Instant::now();
                let told = all.iter().filter(|forged| lines.may_name(forged.source, now));
                told.for_each(|forged| name(forged, &board));
                if let Some(left_out) = lines.left_out(now) {
                    warn!(
                        target: "culvert::bpf",
                        left_out,
                        "further reports of forged marks, from addresses that were named or too many to name"
                    );
                }
            }
            Err(error) => warn!(%error, "forged marks cannot be told of"),
        }
    }
}

/// What has been said, as far as it bears on what may be said.
#[derive(Debug, Default)]
struct Lines {
    /// When each was named; none longer ago than [`QUIET`], and at most [`LINES`].
    named: HashMap<IpAddr, Instant>,
    /// Not told of yet, and since when there has been something.
    left_out: Option<(u64, Instant)>,
}

impl Lines {
    /// Whether this address may be named now; if not, it is counted.
    fn may_name(&mut self, source: IpAddr, now: Instant) -> bool {
        self.named.retain(|_, at| now.saturating_duration_since(*at) < QUIET);
        if self.named.len() < LINES && !self.named.contains_key(&source) {
            self.named.insert(source, now);
            return true;
        }
        self.left_out.get_or_insert((0, now)).0 += 1;
        false
    }

    /// How many had no line, to be said now: once in [`QUIET`].
    fn left_out(&mut self, now: Instant) -> Option<u64> {
        let (count, _) =
            self.left_out.take_if(|(_, since)| now.saturating_duration_since(*since) >= QUIET)?;
        Some(count)
    }
}

fn name(forged: &Forged, board: &Board) {
    let Forged { source, destination, mark } = forged;
    let pod = board
        .at(*source)
        .map_or_else(|| "unknown".to_owned(), |(namespace, name)| format!("{namespace}/{name}"));
    warn!(
        target: "culvert::bpf",
        %source,
        pod,
        %destination,
        mark = format!("{mark:#x}"),
        "packets carry a mark of the mesh that is not theirs: it exempts nothing, they are captured; the source, and so the pod, is what they say themselves"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn an_address_has_one_line_a_minute_and_the_rest_is_counted() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let named: Vec<u64> =
            (0..130).step_by(5).filter(|second| lines.may_name(address(1), at(*second))).collect();
        assert_eq!(named, [0, 60, 120]);
        assert_eq!(lines.left_out(at(64)), None, "not before a minute has passed");
        assert_eq!(lines.left_out(at(65)), Some(23));
        assert_eq!(lines.left_out(at(1000)), None, "it has been said");
    }

    #[test]
    fn invented_addresses_have_a_few_lines_a_minute_and_take_no_memory() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        for minute in 0..3 {
            let now = start + QUIET * minute;
            let addresses = minute * 10_000..(minute + 1) * 10_000;
            assert_eq!(addresses.filter(|number| lines.may_name(address(*number), now)).count(), LINES);
            assert_eq!(lines.named.len(), LINES);
        }
        assert_eq!(lines.left_out(start + QUIET * 3), Some(3 * (10_000 - LINES as u64)));
    }
}
