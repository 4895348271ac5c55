//! The client's tunnels: who may share one, how many there are, who dials.
//!
//! The lock is held for moments, never across a dial: callers with the same key wait for one dial, callers with
//! other keys for nobody. Nothing of a key stays when its last tunnel is gone.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mesh::SpiffeId;
use tokio::runtime::{self, Handle};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Http2;
use super::budget::Budget;
use super::message::{Authority, ConnectHeaders};
use super::nested;
use super::stream::TunnelStream;
use super::tunnel::{Dialed, OpenError, Opened, RequestError, Tunnel};
use super::window::Place;
use crate::tls::{ExpectedPeers, WorkloadCertificate};

/// What makes two connections able to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Who we are.
    pub source: SpiffeId,
    /// Who the server has to be.
    pub expected: ExpectedPeers,
    /// Where it is.
    pub destination: SocketAddr,
    /// Where we come from: the pod's address.
    pub source_ip: IpAddr,
}

/// A key where its tunnels are driven. A stream of another runtime would wake another thread with each message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LocalKey {
    runtime: runtime::Id,
    key: PoolKey,
}

/// Bounds of a pool.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Streams a tunnel carries at once, or fewer if the server says so; default 100 (contract 2.8), at least 1.
    pub streams_per_tunnel: u32,
    /// Tunnels in all, being dialled included; default 4096. At the bound idle ones make room, then dials fail.
    pub max_tunnels: usize,
    /// Tunnels with the same source address; default 1024: one pod cannot take the pool from the others.
    pub max_tunnels_per_source: usize,
    /// A tunnel without streams is closed after so long; default 5 min (contract 2.8).
    pub idle_release: Duration,
    /// Until the dialer's connection stands; default 10 s.
    pub dial_timeout: Duration,
    /// For the TLS handshake; default 10 s.
    pub tls_timeout: Duration,
    /// For the HTTP/2 preface to be written; default 10 s.
    pub preface_timeout: Duration,
    /// Until a CONNECT is answered; default 15 s, more than the server's own dial takes at most (10 s).
    pub reply_timeout: Duration,
    /// A PING is sent so often; default 10 s.
    pub ping_interval: Duration,
    /// And must be answered within; default 20 s, or the tunnel is dead.
    pub ping_timeout: Duration,
    /// Streams that are open when a certificate expires may go on for so long; default: until they end.
    pub expiry_grace: Option<Duration>,
    /// What windows are taken from, by source address; default 512 MiB. One per process: servers use it too.
    pub budget: Budget,
    /// How HTTP/2 is spoken.
    pub http2: Http2,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            streams_per_tunnel: 100,
            max_tunnels: 4096,
            max_tunnels_per_source: 1024,
            idle_release: Duration::from_secs(300),
            dial_timeout: Duration::from_secs(10),
            tls_timeout: Duration::from_secs(10),
            preface_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            expiry_grace: None,
            budget: Budget::default(),
            http2: Http2::default(),
        }
    }
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Tunnels, being dialled included.
    pub tunnels: usize,
    /// Open streams.
    pub streams: usize,
    /// Keys with a tunnel or a dial.
    pub keys: usize,
}

/// The dials of a pool that are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dials {
    /// Those that made a tunnel.
    pub established: u64,
    /// Those that made none. Each fails all who wait for it.
    pub failed: u64,
}

/// The tunnels of a node. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    config: PoolConfig,
    established: AtomicU64,
    failed: AtomicU64,
    entries: Mutex<HashMap<LocalKey, Entry>>,
}

/// What is held for a key; never empty.
#[derive(Default)]
struct Entry {
    tunnels: Vec<Arc<Tunnel>>,
    dial: Option<DialResult>,
}

/// A dial's outcome, for all who wait. Closed without one, its task was aborted.
type DialResult = watch::Receiver<Option<Result<Arc<Tunnel>, OpenError>>>;

impl Entry {
    /// Tunnels, the one being dialled included.
    fn len(&self) -> usize {
        self.tunnels.len() + usize::from(self.dial.is_some())
    }
}

/// How a caller comes to a place on a tunnel.
enum Step {
    Use(Arc<Tunnel>, Place),
    Wait(DialResult),
    Dial(DialTask, DialResult),
}

impl Pool {
    /// An empty pool.
    pub fn new(config: PoolConfig) -> Self {
        let (established, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Inner { config, established, failed, entries: Mutex::default() }))
    }

    /// Opens a stream to `authority`: on a tunnel with room, or on a new one that `dial` connects. Callers with
    /// the same key share one dial, which goes on in a task of its own if they give up; its failure
    /// reaches all of them. A CONNECT that a reused tunnel did not process is tried once more, on a fresh tunnel;
    /// so is one that a fresh tunnel's server turned away with GOAWAY or REFUSED_STREAM.
    ///
    /// No tunnel is used that was made with a certificate which `certificate` has replaced, or of which a certificate,
    /// ours or the server's, has expired.
    pub async fn open<D, F, IO>(
        &self,
        key: &PoolKey,
        certificate: &WorkloadCertificate,
        authority: &Authority,
        headers: &ConnectHeaders,
        dial: D,
    ) -> Result<Opened, OpenError>
    where
        D: Fn() -> F + Send + Sync,
        F: Future<Output = std::io::Result<IO>> + Send + 'static,
        IO: Dialed,
    {
        let key = &LocalKey { runtime: Handle::current().id(), key: key.clone() };
        let mut fresh = false;
        loop {
            let attempt = async {
                let (tunnel, place, reused) =
                    self.place(key, certificate, fresh, &dial).await.map_err(|error| (false, error))?;
                tunnel.open(place, reused, authority, headers).await.map_err(|error| (reused, error))
            };
            let (reused, error) = match attempt.await {
                Ok(opened) => return Ok(opened),
                Err(failed) => failed,
            };
            match error {
                // Whatever it is, the tunnel takes no requests now. A later one finds out the same for itself,
                // unless the driver was faster.
                RequestError::Unprocessed(error) if reused && !fresh => {
                    tracing::debug!(destination = %key.key.destination, %error, "CONNECT goes to a fresh tunnel");
                    fresh = true;
                }
                // It may be about to end, or have too many streams: that is not so of the next.
                RequestError::Refused(error) if !fresh => {
                    tracing::debug!(destination = %key.key.destination, %error, "CONNECT goes to another tunnel");
                    fresh = true;
                }
                RequestError::Unprocessed(error)
                | RequestError::Refused(error)
                | RequestError::Failed(error) => return Err(error),
            }
        }
    }

    /// Opens a stream to `authority` through a tunnel of its own within `outer`, a stream to the gateway of another
    /// network. `source_ip` is the pod's that windows are granted to. The tunnel is not used again: who is at its far
    /// end is for the gateway to choose, each time anew.
    pub async fn open_within(
        &self,
        outer: TunnelStream,
        source_ip: IpAddr,
        certificate: &WorkloadCertificate,
        expected: &ExpectedPeers,
        authority: &Authority,
        headers: &ConnectHeaders,
    ) -> Result<Opened, OpenError> {
        let config = &self.0.config;
        let share = config.budget.share(source_ip);
        nested::open(outer, certificate, expected, &share, config, authority, headers).await
    }

    /// A place on a tunnel and whether the tunnel stood before; with `fresh` only one that did not.
    async fn place<D, F, IO>(
        &self,
        key: &LocalKey,
        certificate: &WorkloadCertificate,
        fresh: bool,
        dial: &D,
    ) -> Result<(Arc<Tunnel>, Place, bool), RequestError>
    where
        D: Fn() -> F + Send + Sync,
        F: Future<Output = std::io::Result<IO>> + Send + 'static,
        IO: Dialed,
    {
        loop {
            let mut result = match self.step(key, certificate, fresh).map_err(RequestError::Failed)? {
                Step::Use(tunnel, place) => return Ok((tunnel, place, true)),
                Step::Wait(result) => result,
                Step::Dial(task, result) => {
                    tokio::spawn(task.run(dial(), certificate.clone()));
                    result
                }
            };
            let outcome = match result.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None,
            };
            let tunnel = outcome
                .unwrap_or_else(|| Err(OpenError::Http2("the dial was aborted".to_owned())))
                .map_err(RequestError::Failed)?;
            // Somebody's dial with the certificate before ours: the next step does away with its tunnel.
            if tunnel.is_outdated_by(certificate) {
                continue;
            }
            if let Some(place) = tunnel.take_place() {
                return Ok((tunnel, place, false));
            }
            // A server that closes every tunnel at once must not be dialled for ever.
            if let Some(error) = tunnel.ended() {
                return Err(error);
            }
            // More callers waited than the new tunnel takes: the rest dial another.
        }
    }

    fn step(
        &self,
        key: &LocalKey,
        certificate: &WorkloadCertificate,
        fresh: bool,
    ) -> Result<Step, OpenError> {
        let mut entries = self.0.entries();
        retire_outdated(&mut entries, key, certificate);
        if let Some(entry) = entries.get(key) {
            let place = |tunnel: &Arc<Tunnel>| Some((tunnel.clone(), tunnel.take_place()?));
            if let Some((tunnel, place)) = entry.tunnels.iter().filter(|_| !fresh).find_map(place) {
                return Ok(Step::Use(tunnel, place));
            }
            if let Some(dial) = &entry.dial {
                return Ok(Step::Wait(dial.clone()));
            }
        }
        self.0.make_room(&mut entries, key)?;
        let (sender, result) = watch::channel(None);
        entries.entry(key.clone()).or_default().dial = Some(result.clone());
        Ok(Step::Dial(DialTask { pool: Arc::downgrade(&self.0), key: key.clone(), result: sender }, result))
    }

    /// Takes the matching tunnels out: no new streams; each is closed when its last stream ends. Dials in
    /// progress come to nothing.
    pub fn retire(&self, matches: impl Fn(&PoolKey) -> bool) {
        self.0.entries().retain(|key, entry| {
            let retired = matches(&key.key);
            if retired {
                entry.tunnels.iter().for_each(|tunnel| tunnel.retire());
            }
            !retired
        });
    }

    /// What windows are taken from, for the servers of the same process.
    pub fn budget(&self) -> &Budget {
        &self.0.config.budget
    }

    /// How HTTP/2 is spoken, for them too.
    pub fn http2(&self) -> Http2 {
        self.0.config.http2
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> PoolStats {
        let entries = self.0.entries();
        let streams =
            entries.values().flat_map(|entry| &entry.tunnels).map(|tunnel| tunnel.streams.count()).sum();
        PoolStats { tunnels: entries.values().map(Entry::len).sum(), streams, keys: entries.len() }
    }

    /// What it has done since it was made.
    pub fn dials(&self) -> Dials {
        let Inner { established, failed, .. } = &*self.0;
        Dials { established: established.load(Ordering::Relaxed), failed: failed.load(Ordering::Relaxed) }
    }
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, HashMap<LocalKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if another tunnel is too many. Looks at all keys, which is cheap beside the dial it is for.
    fn make_room(&self, entries: &mut HashMap<LocalKey, Entry>, key: &LocalKey) -> Result<(), OpenError> {
        let same_source = |other: &LocalKey| other.key.source_ip == key.key.source_ip;
        let held = |entries: &HashMap<LocalKey, Entry>, counts: &dyn Fn(&LocalKey) -> bool| {
            entries.iter().filter(|(key, _)| counts(key)).map(|(_, entry)| entry.len()).sum::<usize>()
        };
        if held(entries, &same_source) >= self.config.max_tunnels_per_source && !evict(entries, &same_source)
        {
            return Err(OpenError::PoolFull(self.config.max_tunnels_per_source));
        }
        if held(entries, &|_| true) >= self.config.max_tunnels && !evict(entries, &|_| true) {
            return Err(OpenError::PoolFull(self.config.max_tunnels));
        }
        Ok(())
    }

    /// Takes a tunnel out; `if_idle`: unless it has got a stream meanwhile. Whether it is out.
    fn remove(&self, key: &LocalKey, tunnel: &Arc<Tunnel>, if_idle: bool) -> bool {
        let mut entries = self.entries();
        if if_idle && tunnel.streams.count() > 0 {
            return false;
        }
        remove(&mut entries, key, tunnel);
        true
    }
}

fn remove(entries: &mut HashMap<LocalKey, Entry>, key: &LocalKey, tunnel: &Arc<Tunnel>) {
    if let Some(entry) = entries.get_mut(key) {
        entry.tunnels.retain(|other| !Arc::ptr_eq(other, tunnel));
        if entry.len() == 0 {
            entries.remove(key);
        }
    }
}

/// Takes out what was made with a certificate that `certificate` has replaced.
fn retire_outdated(
    entries: &mut HashMap<LocalKey, Entry>,
    key: &LocalKey,
    certificate: &WorkloadCertificate,
) {
    let Some(entry) = entries.get_mut(key) else { return };
    for tunnel in entry.tunnels.extract_if(.., |tunnel| tunnel.is_outdated_by(certificate)) {
        tunnel.retire();
    }
    if entry.len() == 0 {
        entries.remove(key);
    }
}

/// Closes the tunnel that has been idle for the longest, if there is one.
fn evict(entries: &mut HashMap<LocalKey, Entry>, counts: &dyn Fn(&LocalKey) -> bool) -> bool {
    let tunnels = entries.iter().filter(|(key, _)| counts(key));
    let idle = tunnels.flat_map(|(key, entry)| entry.tunnels.iter().map(move |tunnel| (key, tunnel)));
    let oldest = idle
        .filter_map(|(key, tunnel)| Some((tunnel.idle_since()?, key, tunnel)))
        .min_by_key(|(since, ..)| *since)
        .map(|(_, key, tunnel)| (key.clone(), tunnel.clone()));
    let Some((key, tunnel)) = oldest else { return false };
    remove(entries, &key, &tunnel);
    tunnel.retire();
    true
}

/// The one dial of a key. Dropped in whatever state, the key is free for another.
struct DialTask {
    pool: Weak<Inner>,
    key: LocalKey,
    result: watch::Sender<Option<Result<Arc<Tunnel>, OpenError>>>,
}

impl DialTask {
    /// Dials, tells those who wait, and drives the tunnel.
    async fn run<F, IO>(self, dial: F, certificate: WorkloadCertificate)
    where
        F: Future<Output = std::io::Result<IO>>,
        IO: Dialed,
    {
        let Some(config) = self.pool.upgrade().map(|pool| pool.config.clone()) else { return };
        let established = async {
            let io = match timeout(config.dial_timeout, dial).await {
                Ok(io) => io.map_err(|error| OpenError::Dial(Arc::new(error)))?,
                Err(_) => return Err(OpenError::DialTimeout(config.dial_timeout)),
            };
            let share = config.budget.share(self.key.key.source_ip);
            Tunnel::establish(io, &certificate, &self.key.key.expected, &share, &config).await
        };
        let (tunnel, driver) = match established.await {
            Ok(established) => established,
            Err(error) => return self.publish(Err(error)),
        };
        let (pool, key) = (self.pool.clone(), self.key.clone());
        self.publish(Ok(tunnel.clone()));
        let release = |anyway: bool| pool.upgrade().is_none_or(|pool| pool.remove(&key, &tunnel, !anyway));
        driver.run(&tunnel, release).await;
        if let Some(pool) = pool.upgrade() {
            pool.remove(&key, &tunnel, false);
        }
    }

    /// First into the pool, then to those who wait: who comes between finds it there.
    fn publish(self, mut outcome: Result<Arc<Tunnel>, OpenError>) {
        if let (Ok(tunnel), Some(pool)) = (&outcome, self.pool.upgrade()) {
            match pool.entries().get_mut(&self.key).filter(|entry| self.is_dial_of(entry)) {
                Some(entry) => {
                    entry.tunnels.push(tunnel.clone());
                    entry.dial = None;
                }
                None => {
                    tunnel.retire();
                    outcome = Err(OpenError::GivenUp);
                }
            }
        }
        if let Some(pool) = self.pool.upgrade() {
            let count = if outcome.is_ok() { &pool.established } else { &pool.failed };
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.result.send_replace(Some(outcome));
    }

    /// It is not when the key was retired meanwhile.
    fn is_dial_of(&self, entry: &Entry) -> bool {
        entry.dial.as_ref().is_some_and(|dial| dial.same_channel(&self.result.subscribe()))
    }
}

impl Drop for DialTask {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut entries = pool.entries();
        if let Some(entry) = entries.get_mut(&self.key).filter(|entry| self.is_dial_of(entry)) {
            entry.dial = None;
            if entry.len() == 0 {
                entries.remove(&self.key);
            }
        }
    }
}
