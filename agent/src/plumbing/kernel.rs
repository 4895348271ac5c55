//! Reads and writes the rules, routes and sysctls of a pod through rtnetlink and procfs, from inside its
//! namespace. Adding what stands and deleting what is gone both succeed, so every call may be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, link::LinkFlags};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

use super::{
    APPLICATION_LEG, Actual, CAPTURED, Change, Family, MARK_MASK, Mark, Piece, RULE_PREFERENCE, Sysctl, TABLE,
};
use crate::netns::Netns;

/// The loopback device has this index in every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// A call into the kernel that failed, with what was being done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlumbingError {
    /// The namespace could not be entered, or no netlink socket be had.
    #[error("cannot work in the pod's network namespace: {0}")]
    Enter(#[from] io::Error),
    /// A netlink request was refused.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was asked for.
        doing: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A sysctl could not be read or written.
    #[error("{path}: {source}")]
    Sysctl {
        /// Below `/proc/sys`.
        path: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn netlink(doing: impl ToString) -> impl FnOnce(rtnetlink::Error) -> PlumbingError {
    let doing = doing.to_string();
    |source| PlumbingError::Netlink { doing, source }
}

/// Reads what stands in `netns`.
pub(crate) fn read(netns: &Netns) -> Result<Actual, PlumbingError> {
    netns.run_async(|| async {
        let handle = connect()?;
        let families = families();
        let mut pieces = BTreeSet::new();
        if loopback_is_up(&handle).await? {
            pieces.insert(Piece::LoopbackUp);
        }
        for &family in &families {
            pieces.extend(rules(&handle, family).await?);
            pieces.extend(route(&handle, family).await?);
        }
        let sysctls = sysctls(&families)?;
        pieces.extend(
            sysctls.iter().filter(|(_, value)| *value == "1").map(|(&sysctl, _)| Piece::Sysctl(sysctl)),
        );
        Ok(Actual { families, pieces, sysctls })
    })?
}

/// Makes `changes` in `netns`, in their order; stops at the first that fails.
pub(crate) fn apply(netns: &Netns, changes: &[Change]) -> Result<(), PlumbingError> {
    if changes.is_empty() {
        return Ok(());
    }
    netns.run_async(|| async {
        let handle = connect()?;
        for change in changes {
            make(&handle, change).await?;
        }
        Ok(())
    })?
}

fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// IPv6 counts only where the loopback device speaks it: without that no IPv6 packet can be turned to it.
fn families() -> BTreeSet<Family> {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    match disabled {
        Ok(value) if value.trim() == "0" => BTreeSet::from([Family::V4, Family::V6]),
        _ => BTreeSet::from([Family::V4]),
    }
}

fn sysctls(families: &BTreeSet<Family>) -> Result<BTreeMap<Sysctl, String>, PlumbingError> {
    let wanted = Sysctl::ALL.into_iter().filter(|sysctl| families.contains(&sysctl.family()));
    wanted
        .map(|sysctl| {
            let value = std::fs::read_to_string(Path::new("/proc/sys").join(sysctl.path()))
                .map_err(|source| PlumbingError::Sysctl { path: sysctl.path(), source })?;
            Ok((sysctl, value.trim().to_owned()))
        })
        .collect()
}

async fn loopback_is_up(handle: &Handle) -> Result<bool, PlumbingError> {
    let links = handle.link().get().match_index(LOOPBACK_INDEX).execute();
    let links: Vec<_> = links.try_collect().await.map_err(netlink("read the loopback device"))?;
    Ok(links.iter().any(|link| link.header.flags.contains(LinkFlags::Up)))
}

fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

async fn rules(handle: &Handle, family: Family) -> Result<Vec<Piece>, PlumbingError> {
    let rules = handle.rule().get(version(family)).execute();
    let rules: Vec<RuleMessage> = rules.try_collect().await.map_err(netlink("list the rules"))?;
    Ok(rules.iter().filter_map(our_mark).map(|mark| Piece::Rule(family, mark)).collect())
}

/// The mark a rule of ours is about; none for a rule that is not exactly ours.
fn our_mark(rule: &RuleMessage) -> Option<Mark> {
    let has = |attribute: RuleAttribute| rule.attributes.contains(&attribute);
    let table = u32::from(rule.header.table) == TABLE || has(RuleAttribute::Table(TABLE));
    let selects_more = rule.header.dst_len != 0 || rule.header.src_len != 0;
    if !table
        || selects_more
        || !has(RuleAttribute::FwMask(MARK_MASK))
        || !has(RuleAttribute::Priority(RULE_PREFERENCE))
    {
        return None;
    }
    [CAPTURED, APPLICATION_LEG].into_iter().find(|mark| has(RuleAttribute::FwMark(mark.0)))
}

fn route_filter(family: Family) -> RouteMessage {
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    }
}

async fn route(handle: &Handle, family: Family) -> Result<Option<Piece>, PlumbingError> {
    let routes = handle.route().get(route_filter(family)).execute();
    let routes: Vec<RouteMessage> = routes.try_collect().await.map_err(netlink("list the routes"))?;
    Ok(routes.iter().any(is_ours).then_some(Piece::Route(family)))
}

fn is_ours(route: &RouteMessage) -> bool {
    let has = |attribute: RouteAttribute| route.attributes.contains(&attribute);
    (u32::from(route.header.table) == TABLE || has(RouteAttribute::Table(TABLE)))
        && route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0
        && has(RouteAttribute::Oif(LOOPBACK_INDEX))
}

fn our_route(family: Family) -> RouteMessage {
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut route = match any {
        IpAddr::V4(any) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(any, 0).build(),
        IpAddr::V6(any) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(any, 0).build(),
    };
    route.header.table = u8::try_from(TABLE).unwrap_or_default();
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.attributes.push(RouteAttribute::Oif(LOOPBACK_INDEX));
    route
}

fn our_rule(family: Family, mark: Mark) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    rule.header.action = RuleAction::ToTable;
    rule.header.table = u8::try_from(TABLE).unwrap_or_default();
    rule.attributes = vec![
        RuleAttribute::Priority(RULE_PREFERENCE),
        RuleAttribute::FwMark(mark.0),
        RuleAttribute::FwMask(MARK_MASK),
    ];
    rule
}

async fn make(handle: &Handle, change: &Change) -> Result<(), PlumbingError> {
    match change {
        Change::Add(piece @ Piece::LoopbackUp) => {
            let up = LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build();
            handle.link().set(up).execute().await.map_err(netlink(piece))
        }
        Change::Add(Piece::Sysctl(sysctl)) => write_sysctl(*sysctl, "1"),
        Change::Restore(sysctl, value) => write_sysctl(*sysctl, value),
        Change::Add(piece @ Piece::Route(family)) => {
            let added = handle.route().add(our_route(*family)).execute().await;
            tolerate(added, libc::EEXIST).map_err(netlink(piece))
        }
        Change::Add(piece @ Piece::Rule(family, mark)) => {
            let mut request = handle.rule().add();
            *request.message_mut() = our_rule(*family, *mark);
            tolerate(request.execute().await, libc::EEXIST).map_err(netlink(piece))
        }
        Change::Remove(piece @ Piece::Route(family)) => {
            let removed = handle.route().del(our_route(*family)).execute().await;
            tolerate(removed, libc::ESRCH).map_err(netlink(piece))
        }
        Change::Remove(piece @ Piece::Rule(family, mark)) => {
            let removed = handle.rule().del(our_rule(*family, *mark)).execute().await;
            tolerate(removed, libc::ENOENT).map_err(netlink(piece))
        }
        // Whether lo is up, and the sysctls, are not ours to take away.
        Change::Remove(Piece::LoopbackUp | Piece::Sysctl(_)) => Ok(()),
    }
}

fn write_sysctl(sysctl: Sysctl, value: &str) -> Result<(), PlumbingError> {
    std::fs::write(Path::new("/proc/sys").join(sysctl.path()), value)
        .map_err(|source| PlumbingError::Sysctl { path: sysctl.path(), source })
}

/// Takes the one refusal that means "it is so already" for success.
fn tolerate(result: Result<(), rtnetlink::Error>, errno: i32) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -errno => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_rule_is_recognised_and_others_are_not() {
        let rule = our_rule(Family::V4, CAPTURED);
        assert_eq!(our_mark(&rule), Some(CAPTURED));
        let altered = |alter: fn(&mut RuleMessage)| {
            let mut rule = rule.clone();
            alter(&mut rule);
            our_mark(&rule)
        };
        assert_eq!(altered(|rule| rule.header.table = 101), None, "another table");
        assert_eq!(altered(|rule| rule.header.dst_len = 24), None, "only part of the addresses");
        assert_eq!(
            altered(|rule| rule.attributes[0] = RuleAttribute::Priority(5)),
            None,
            "another preference"
        );
        assert_eq!(altered(|rule| rule.attributes[1] = RuleAttribute::FwMark(0x539)), None, "another mark");
        assert_eq!(altered(|rule| rule.attributes[2] = RuleAttribute::FwMask(0xff)), None, "another mask");
    }

    #[test]
    fn the_own_route_is_recognised_and_others_are_not() {
        for family in [Family::V4, Family::V6] {
            assert!(is_ours(&our_route(family)), "{family:?}");
            let mut elsewhere = our_route(family);
            elsewhere.attributes = vec![RouteAttribute::Oif(2)];
            assert!(!is_ours(&elsewhere), "{family:?} over another device");
        }
    }
}
