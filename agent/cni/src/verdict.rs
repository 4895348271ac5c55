//! What becomes of a pod whose network namespace is to be captured: pure.

use crate::ask::Answer;

/// What the file of members says of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It counts as a pod of the mesh.
    Member,
    /// It does not.
    Outside,
    /// The file cannot be read, for this reason.
    Unknown(String),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let the pod start.
    Pass,
    /// Ask the agent again in a moment.
    AskAgain,
    /// Let it not start, for this reason.
    Refuse(String),
}

/// Decides. `answer` is the agent's, or why there is none; `is_late` when the time is up.
///
/// `membership` is looked up only when the agent gives no answer.
pub fn of(answer: Result<Answer, String>, membership: impl FnOnce() -> Membership, is_late: bool) -> Verdict {
    let unreachable = match answer {
        Ok(Answer::Captured | Answer::Outside) => return Verdict::Pass,
        Ok(Answer::Refused(reason)) => return Verdict::Refuse(reason),
        Err(unreachable) => unreachable,
    };
    let belongs = match membership() {
        Membership::Outside => return Verdict::Pass,
        _ if !is_late => return Verdict::AskAgain,
        Membership::Member => "the pod belongs to the mesh".to_owned(),
        Membership::Unknown(reason) => {
            format!("nobody can tell whether the pod belongs to the mesh ({reason})")
        }
    };
    Verdict::Refuse(format!(
        "{belongs}, and culvert's agent does not answer on this node: {unreachable}. The pod waits, since it would talk past the mesh; \
         it starts once the agent is back (see the pods of the DaemonSet culvert-agent)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_starts_when_it_is_captured_or_outside_and_waits_only_if_it_is_or_may_be_of_the_mesh() {
        let away = || Err("connection refused".to_owned());
        let unreadable = || Membership::Unknown("no such file".to_owned());
        let refused = || Verdict::Refuse("no ztunnel".to_owned());
        for (answer, membership, is_late, expected) in [
            (Ok(Answer::Captured), unreadable(), true, Some(Verdict::Pass)),
            (Ok(Answer::Outside), Membership::Member, true, Some(Verdict::Pass)),
            (Ok(Answer::Refused("no ztunnel".to_owned())), Membership::Outside, false, Some(refused())),
            (away(), Membership::Outside, false, Some(Verdict::Pass)),
            (away(), Membership::Outside, true, Some(Verdict::Pass)),
            (away(), Membership::Member, false, Some(Verdict::AskAgain)),
            (away(), unreadable(), false, Some(Verdict::AskAgain)),
            (away(), Membership::Member, true, None),
            (away(), unreadable(), true, None),
        ] {
            let name = format!("{answer:?}, {membership:?}, late: {is_late}");
            let verdict = of(answer, || membership, is_late);
            match expected {
                Some(expected) => assert_eq!(verdict, expected, "{name}"),
                None => assert!(
                    matches!(&verdict, Verdict::Refuse(reason) if reason.contains("connection refused")),
                    "{name}: {verdict:?}"
                ),
            }
        }
    }
}
