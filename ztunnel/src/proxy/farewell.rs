//! The end of live connections whose pod leaves or whose process ends: they have until the deadline to end by themselves.
//!
//! What is left then is reset, and a reset inside of a message loses it. So for the last part of the time a connection is reset as soon as
//! nothing moves on it: an application that keeps connections for later finds such a one gone and opens another.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use daemon::drain::Deadline;
use mesh::authorize::Attempt;
use tokio::time::{Instant, interval, timeout};

use super::failure::Failure;
use super::live::LiveConnections;

/// After connections were cut, how long their tasks may take to reset them.
pub(crate) const CUT_TIME: Duration = Duration::from_secs(1);

/// No byte either way for so long, up to twice of it, is a gap.
const GAP: Duration = Duration::from_millis(250);

/// The most of a deadline that is spent on looking for gaps.
const LAST_PART: Duration = Duration::from_secs(5);

/// A tenth of the deadline: until then a silence is the application's own affair.
pub(crate) fn last_part(deadline: Duration) -> Duration {
    (deadline / 10).min(LAST_PART)
}

/// Resets connections of `all` in their gaps. Runs until dropped.
pub(crate) async fn cut_in_gaps(
    all: impl Fn() -> Vec<Arc<LiveConnections<Attempt>>>,
    why: fn() -> Failure,
) -> Infallible {
    let mut look = interval(GAP);
    loop {
        look.tick().await;
        all().iter().for_each(|live| live.cut_still(why));
    }
}

/// Returns when all of `live` have ended or were reset, soon after `deadline` at the latest.
pub(crate) async fn let_end(live: &Arc<LiveConnections<Attempt>>, deadline: &Deadline, why: fn() -> Failure) {
    let begun = Instant::now();
    let gaps = async {
        deadline.passed(begun, last_part).await;
        cut_in_gaps(|| vec![live.clone()], why).await
    };
    tokio::select! {
        () = live.ended() => return,
        never = gaps => match never {},
        () = deadline.passed(begun, |_| Duration::ZERO) => {}
    }
    live.cut_all(why);
    // Whoever does not make it is cut with everything else of its pod, or by the kernel.
    let _ = timeout(CUT_TIME, live.ended()).await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tunnel::copy::{Side, Transferred};

    use super::super::live::Listed;
    use super::*;

    fn enter(
        all: &Arc<LiveConnections<Attempt>>,
        moved: &Arc<Transferred>,
    ) -> super::super::live::Live<Attempt> {
        let any: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let listed = Listed { source: any, original: any, actual: any, protocol: "TCP" };
        all.enter(listed, None, moved.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_left_alone_until_the_last_tenth_and_a_busy_one_until_the_end() {
        let all = LiveConnections::new();
        let (still, busy) = (Arc::new(Transferred::default()), Arc::new(Transferred::default()));
        let (mut silent, mut speaking) = (enter(&all, &still), enter(&all, &busy));
        let begun = Instant::now();
        let talk = tokio::spawn(async move {
            loop {
                busy.count(Side::Source, 1);
                tokio::time::sleep(GAP / 2).await;
            }
        });
        let ends = async {
            silent.cut().await;
            drop(silent);
            let first = begun.elapsed();
            speaking.cut().await;
            drop(speaking);
            (first, begun.elapsed())
        };
        let deadline = Deadline::new(Duration::from_secs(30));
        let ((), (first, second)) = tokio::join!(let_end(&all, &deadline, || Failure::Drained), ends);
        assert_eq!(first, Duration::from_secs(27) + GAP);
        assert_eq!(second, Duration::from_secs(30));
        talk.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_longer_deadline_moves_the_last_part_as_well() {
        let all = LiveConnections::new();
        let mut silent = enter(&all, &Arc::default());
        let deadline = Deadline::new(Duration::from_secs(30));
        let begun = Instant::now();
        let change = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            deadline.set(Duration::from_secs(300));
        };
        let end = async {
            silent.cut().await;
            drop(silent);
        };
        tokio::join!(let_end(&all, &deadline, || Failure::PodRemoved), change, end);
        assert_eq!(begun.elapsed(), Duration::from_secs(295) + GAP);
    }
}
