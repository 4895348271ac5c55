//! Resources that are asked for by name when somebody needs them, instead of all at once (contract 1.5, `XDS_ON_DEMAND`).
//!
//! A name is asked for once, however many wait for it, and stays subscribed to: from its answer on, pushes keep up to date
//! what is known of it, also that there is nothing. Of names that there is nothing for, the last [`MAX_ABSENT`] are kept; a
//! pod that calls the whole Internet must not fill the memory.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::delta::Rejection;
use crate::proto::discovery::Resource;

/// Names without a resource that stay subscribed to.
const MAX_ABSENT: usize = 4096;

/// Asks for resources by name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Demander(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    asked: Mutex<Asked>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Asked {
    names: HashMap<String, State>,
    /// Names that there is nothing for, the oldest first.
    absent: VecDeque<String>,
    /// Not said on the present stream yet.
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
}

#[derive(Debug)]
enum State {
    /// Nobody has answered; whoever needs it waits here.
    Waiting(watch::Sender<Option<Answer>>),
    Answered(Answer),
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its resource has been applied.
    Applied,
    /// There is none.
    Absent,
    /// There is one that cannot be read.
    Rejected,
}

/// Why it is not known what a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// The control plane has not answered.
    #[error("the control plane has not said within {after:?} what {name} is")]
    TimedOut {
        /// The name.
        name: String,
        /// How long.
        after: Duration,
    },
    /// What it says cannot be read.
    #[error("what the control plane says of {name} cannot be read")]
    Rejected {
        /// The name.
        name: String,
    },
    /// The client has ended.
    #[error("the control plane is no longer followed")]
    Ended,
}

impl Demander {
    /// Waits until it is known what `name` stands for: a resource, which has been applied then, or nothing. At most `patience`.
    pub async fn demand(&self, name: &str, patience: Duration) -> Result<(), DemandError> {
        let mut answer = match self.0.ask(name) {
            Ok(answered) => return done(name, answered),
            Err(waiting) => waiting,
        };
        let answered = timeout(patience, answer.wait_for(Option::is_some)).await;
        let answered =
            answered.map_err(|_| DemandError::TimedOut { name: name.to_owned(), after: patience })?;
        let answered = answered.map_err(|_| DemandError::Ended)?.ok_or(DemandError::Ended)?;
        done(name, answered)
    }

    /// For the start of a stream: all names, in the place of what was to be said on the one before.
    pub(super) fn names_for_new_stream(&self) -> Vec<String> {
        let mut asked = self.0.asked();
        asked.subscribe.clear();
        asked.unsubscribe.clear();
        let mut names: Vec<String> = asked.names.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// What is to be said next: names to subscribe to, and to unsubscribe from. Cancel safe.
    pub(super) async fn next(&self) -> (Vec<String>, Vec<String>) {
        loop {
            {
                let mut asked = self.0.asked();
                let next = (std::mem::take(&mut asked.subscribe), std::mem::take(&mut asked.unsubscribe));
                if !next.0.is_empty() || !next.1.is_empty() {
                    return next;
                }
            }
            self.0.news.notified().await;
        }
    }

    /// What a push, which has been applied, says of names.
    pub(super) fn settle(&self, answers: impl IntoIterator<Item = (String, Answer)>) {
        let mut asked = self.0.asked();
        for (name, answer) in answers {
            asked.settle(name, answer);
        }
        drop(asked);
        self.0.news.notify_one();
    }
}

fn done(name: &str, answer: Answer) -> Result<(), DemandError> {
    match answer {
        Answer::Applied | Answer::Absent => Ok(()),
        Answer::Rejected => Err(DemandError::Rejected { name: name.to_owned() }),
    }
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, or where it will come.
    fn ask(&self, name: &str) -> Result<Answer, watch::Receiver<Option<Answer>>> {
        let mut asked = self.asked();
        match asked.names.get(name) {
            Some(State::Answered(answer)) => return Ok(*answer),
            Some(State::Waiting(waiting)) => return Err(waiting.subscribe()),
            None => {}
        }
        let (sender, receiver) = watch::channel(None);
        asked.names.insert(name.to_owned(), State::Waiting(sender));
        asked.subscribe.push(name.to_owned());
        drop(asked);
        self.news.notify_one();
        Err(receiver)
    }
}

impl Asked {
    fn settle(&mut self, name: String, answer: Answer) {
        // What nobody asked for comes along with what was.
        let Some(state) = self.names.get_mut(&name) else { return };
        let before = std::mem::replace(state, State::Answered(answer));
        let was_absent = matches!(before, State::Answered(Answer::Absent));
        if let State::Waiting(waiting) = before {
            waiting.send_replace(Some(answer));
        }
        match (was_absent, answer == Answer::Absent) {
            (false, true) => self.absent.push_back(name),
            (true, false) => self.absent.retain(|other| *other != name),
            _ => {}
        }
        while self.absent.len() > MAX_ABSENT
            && let Some(oldest) = self.absent.pop_front()
        {
            self.names.remove(&oldest);
            self.unsubscribe.push(oldest);
        }
    }
}

/// The names that a push says something of.
#[derive(Debug)]
pub(super) struct Named {
    /// Each resource's name, and those by which it may have been asked for as well.
    resources: Vec<(String, Vec<String>)>,
    removed: Vec<String>,
}

impl Named {
    /// Those of a push.
    pub(super) fn of(resources: &[Resource], removed: &[String]) -> Self {
        let names = |resource: &Resource| (resource.name.clone(), resource.aliases.clone());
        Self { resources: resources.iter().map(names).collect(), removed: removed.to_vec() }
    }

    /// What is known of them once the push has been applied, but for what was rejected.
    pub(super) fn answers(self, rejected: &[Rejection]) -> impl Iterator<Item = (String, Answer)> {
        let rejected: HashSet<String> = rejected.iter().map(|rejection| rejection.name.clone()).collect();
        let of = move |(name, aliases): (String, Vec<String>)| {
            let answer = if rejected.contains(&name) { Answer::Rejected } else { Answer::Applied };
            std::iter::once(name).chain(aliases).map(move |name| (name, answer))
        };
        let gone = self.removed.into_iter().map(|name| (name, Answer::Absent));
        self.resources.into_iter().flat_map(of).chain(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn settle(demander: &Demander, name: &str, answer: Answer) {
        demander.settle([(name.to_owned(), answer)]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_a_name_wait_for_its_one_answer() {
        let demander = Demander::default();
        let ask = || {
            let demander = demander.clone();
            tokio::spawn(async move { demander.demand("/10.0.0.1", PATIENCE).await })
        };
        let (first, second) = (ask(), ask());
        assert_eq!(demander.next().await, (vec!["/10.0.0.1".to_owned()], Vec::new()));
        settle(&demander, "/10.0.0.2", Answer::Applied);
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!first.is_finished() && !second.is_finished(), "neither goes on without its answer");
        settle(&demander, "/10.0.0.1", Answer::Applied);
        assert_eq!(first.await.unwrap(), Ok(()));
        assert_eq!(second.await.unwrap(), Ok(()));
        assert_eq!(demander.demand("/10.0.0.1", PATIENCE).await, Ok(()), "it is known from then on");
        assert!(timeout(PATIENCE, demander.next()).await.is_err(), "it was asked for once");
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_in_time_is_an_error_of_its_own_and_a_later_one_still_counts() {
        let demander = Demander::default();
        let error = demander.demand("a", PATIENCE).await;
        assert_eq!(error, Err(DemandError::TimedOut { name: "a".to_owned(), after: PATIENCE }));
        settle(&demander, "a", Answer::Absent);
        assert_eq!(demander.demand("a", PATIENCE).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_not_taken_for_nothing_until_it_is_put_right() {
        let demander = Demander::default();
        assert!(demander.demand("a", PATIENCE).await.is_err());
        settle(&demander, "a", Answer::Rejected);
        let error = demander.demand("a", PATIENCE).await;
        assert_eq!(error, Err(DemandError::Rejected { name: "a".to_owned() }));
        settle(&demander, "a", Answer::Applied);
        assert_eq!(demander.demand("a", PATIENCE).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn names_without_a_resource_are_let_go_of_once_there_are_too_many() {
        let demander = Demander::default();
        let nobody = Duration::ZERO;
        for number in 0..=MAX_ABSENT {
            let name = number.to_string();
            let _ = demander.demand(&name, nobody).await;
            let answer = if number == 1 { Answer::Applied } else { Answer::Absent };
            settle(&demander, &name, answer);
        }
        assert!(demander.next().await.1.is_empty(), "there are as many as there may be");
        let _ = demander.demand("more", nobody).await;
        settle(&demander, "more", Answer::Absent);
        assert_eq!(demander.next().await, (vec!["more".to_owned()], vec!["0".to_owned()]));
        assert!(demander.demand("0", nobody).await.is_err(), "it is asked for anew");
    }
}
