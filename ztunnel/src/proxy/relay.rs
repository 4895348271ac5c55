//! Carries an established connection to its end, telling the byte counters on the way.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tunnel::copy::{self, End, Endpoint};

use super::failure::Failure;
use crate::telemetry::Record;

/// How often the byte counters of a live connection are told; as often as metrics are scraped.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);

/// Relays until both sides have finished, one breaks, nothing moves for `idle`, or `cut` says why not to go on.
/// All of `records` count the bytes of the first.
pub(crate) async fn relay<S: Endpoint, D: Endpoint>(
    source: S,
    destination: D,
    records: &mut [&mut Record],
    idle: Duration,
    cut: impl Future<Output = Failure> + Send,
) -> Result<(), Failure> {
    let Some(transferred) = records.first().map(|record| record.transferred().clone()) else { return Ok(()) };
    let mut copying = std::pin::pin!(copy::relay(source, destination, &transferred, idle, cut));
    let mut count = interval(COUNT_INTERVAL);
    count.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = loop {
        tokio::select! {
            end = &mut copying => break end,
            _ = count.tick() => records.iter_mut().for_each(|record| record.count_bytes()),
        }
    };
    match end {
        End::Finished => Ok(()),
        End::Broken { side, error } => Err(Failure::Broken { side, error }),
        End::Idle(_) => Err(Failure::Idle),
        End::Cut(why) => Err(why),
    }
}
