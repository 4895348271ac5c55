//! PING: finds out that the other end is gone, where TCP would take 15 minutes.

use std::future::pending;
use std::time::Duration;

use h2::{Ping, PingPong};

/// How often, and how long an answer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalive {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

impl Keepalive {
    /// Ends when a PING was not answered in time. The first is sent after one interval. Never ends on a
    /// connection that closes otherwise: its driver sees that.
    pub(super) async fn silence(self, ping_pong: Option<PingPong>) {
        let Some(mut ping_pong) = ping_pong else { return pending().await };
        loop {
            tokio::time::sleep(self.interval).await;
            match tokio::time::timeout(self.timeout, ping_pong.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return pending().await,
                Err(_) => return,
            }
        }
    }
}
