//! The tasks of the agent's process: none may end before the process is told to, and none holds it up for long then.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// How long a task that has something to finish may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// Runs tasks until one ends or the process is told to.
pub(crate) struct Tasks {
    all: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Tasks {
    /// None yet; `stop` ends them.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { all: JoinSet::new(), stop }
    }

    /// What ends them.
    pub(crate) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a task that has nothing to finish: it is dropped at the end.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop();
        self.all.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
            name
        });
    }

    /// Runs a task that learns of the end itself, and gets a second for it.
    pub(crate) fn spawn_told(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop();
        self.all.spawn(async move {
            let overdue = async {
                stop.cancelled().await;
                tokio::time::sleep(DEADLINE).await;
            };
            tokio::select! {
                () = task => {}
                () = overdue => {}
            }
            name
        });
    }

    /// Waits for a signal, or for a task that ends before it; then ends all.
    ///
    /// # Errors
    /// A task ended by itself.
    pub(crate) async fn until_told(mut self) -> anyhow::Result<()> {
        let outcome = tokio::select! {
            cause = daemon::drain::signalled() => {
                info!(cause = ?cause?, "the agent stops; what is captured stays captured");
                Ok(())
            }
            ended = self.all.join_next() => match ended {
                Some(Ok(name)) => Err(anyhow::anyhow!("{name} ended; see the log above")),
                Some(Err(failure)) => Err(anyhow::anyhow!("a fault of the agent: {failure}")),
                None => Ok(()),
            },
        };
        self.stop.cancel();
        while self.all.join_next().await.is_some() {}
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_by_itself_ends_the_process_and_names_itself() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("one that stays", std::future::pending());
        tasks.spawn_told("one that does not listen", std::future::pending());
        tasks.spawn("the weak one", async {});
        let started = tokio::time::Instant::now();
        let error = tasks.until_told().await.unwrap_err();
        assert_eq!(error.to_string(), "the weak one ended; see the log above");
        assert_eq!(started.elapsed(), DEADLINE);
    }
}
