//! Reads and writes the rules, routes and sysctls of a pod through rtnetlink and procfs, from inside its
//! namespace. Adding what stands and deleting what is gone both succeed, so every call may be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, IpProtocol, link::LinkAttribute, link::LinkFlags};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

use super::{
    APPLICATION_LEG, Actual, CAPTURED, Change, Family, GATE_PREFERENCE, MARK_MASK, Mark, Piece,
    RULE_PREFERENCE, Sysctl, TABLE,
};
use crate::netns::Netns;

/// The main route table (`RT_TABLE_MAIN` of linux/rtnetlink.h).
const MAIN_TABLE: u8 = 254;
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
        let mut strays = 0;
        for &family in &families {
            let (rules, routes) = (rules(&handle, family).await?, our_table(&handle, family).await?);
            pieces.extend(rules.iter().filter_map(our_mark).map(|mark| Piece::Rule(family, mark)));
            pieces.extend(is_gate(&rules, family).then_some(Piece::Gate(family)));
            pieces.extend(routes.iter().any(is_ours).then_some(Piece::Route(family)));
            strays += rules.iter().filter(|rule| leads_astray(rule)).count();
            strays += routes.iter().filter(|route| !is_ours(route)).count();
        }
        let groups = groups(&handle).await?;
        let sysctls = sysctls(&families)?;
        pieces.extend(
            sysctls.iter().filter(|(_, value)| *value == "1").map(|(&sysctl, _)| Piece::Sysctl(sysctl)),
        );
        Ok(Actual { families, pieces, sysctls, groups, strays })
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

async fn rules(handle: &Handle, family: Family) -> Result<Vec<RuleMessage>, PlumbingError> {
    handle.rule().get(version(family)).execute().try_collect().await.map_err(netlink("list the rules"))
}

/// The group of each device but `lo`.
async fn groups(handle: &Handle) -> Result<BTreeMap<u32, u32>, PlumbingError> {
    let links = handle.link().get().execute();
    let links: Vec<_> = links.try_collect().await.map_err(netlink("list the devices"))?;
    let group = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::Group(group) => Some(*group),
        _ => None,
    };
    let devices = links.iter().filter(|link| link.header.index != LOOPBACK_INDEX);
    Ok(devices.map(|link| (link.header.index, link.attributes.iter().find_map(group).unwrap_or(0))).collect())
}

/// The two rules of a gate; only the first leads to a table.
fn gate_rules(family: Family) -> [RuleMessage; 2] {
    [RuleAction::ToTable, RuleAction::Unreachable].map(|action| {
        let mut rule = RuleMessage::default();
        rule.header.family = address_family(family);
        rule.header.action = action;
        rule.attributes =
            vec![RuleAttribute::Priority(GATE_PREFERENCE), RuleAttribute::IpProtocol(IpProtocol::Tcp)];
        if action == RuleAction::ToTable {
            rule.header.table = MAIN_TABLE;
            rule.attributes.push(RuleAttribute::SuppressIfGroup(0));
        }
        rule
    })
}

/// Whether both rules of the gate stand, the second after the first.
fn is_gate(rules: &[RuleMessage], family: Family) -> bool {
    let place = |wanted: &RuleMessage| {
        let is_it = |rule: &RuleMessage| {
            let attributes = wanted.attributes.iter().all(|attribute| rule.attributes.contains(attribute));
            attributes && rule.header.action == wanted.header.action
        };
        rules.iter().position(is_it)
    };
    let [first, second] = gate_rules(family).map(|rule| place(&rule));
    first.zip(second).is_some_and(|(first, second)| first < second)
}

/// Whether a rule sends what bears a mark of ours elsewhere before ours is asked.
fn leads_astray(rule: &RuleMessage) -> bool {
    let is_ours = |mark: u32| [CAPTURED.0, APPLICATION_LEG.0].contains(&(mark & MARK_MASK));
    let by_mark =
        |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::FwMark(mark) if is_ours(*mark));
    let first = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Priority(preference) if *preference <= RULE_PREFERENCE);
    rule.attributes.iter().any(by_mark) && rule.attributes.iter().any(first) && our_mark(rule).is_none()
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

/// The routes of our table.
async fn our_table(handle: &Handle, family: Family) -> Result<Vec<RouteMessage>, PlumbingError> {
    let routes = handle.route().get(route_filter(family)).execute();
    let mut routes: Vec<RouteMessage> = routes.try_collect().await.map_err(netlink("list the routes"))?;
    routes.retain(|route| {
        u32::from(route.header.table) == TABLE || route.attributes.contains(&RouteAttribute::Table(TABLE))
    });
    Ok(routes)
}

/// Whether a route of our table is the one we put there.
fn is_ours(route: &RouteMessage) -> bool {
    let has = |attribute: RouteAttribute| route.attributes.contains(&attribute);
    route.header.kind == RouteType::Local
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

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn our_rule(family: Family, mark: Mark) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
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
        Change::Add(piece @ Piece::Gate(family)) => {
            remove_gate(handle, *family).await?;
            for rule in gate_rules(*family) {
                let mut request = handle.rule().add();
                *request.message_mut() = rule;
                tolerate(request.execute().await, libc::EEXIST).map_err(netlink(piece))?;
            }
            Ok(())
        }
        Change::Remove(Piece::Gate(family)) => remove_gate(handle, *family).await,
        Change::Group(index, group) => {
            let device = LinkUnspec::new_with_index(*index).link_group(*group).build();
            let set = handle.link().set(device).execute().await;
            // A device that went meanwhile.
            tolerate(set, libc::ENODEV).map_err(netlink(format!("put device {index} into group {group}")))
        }
        Change::RemoveStrays => remove_strays(handle).await,
        // Whether lo is up, and the sysctls, are not ours to take away.
        Change::Remove(Piece::LoopbackUp | Piece::Sysctl(_)) => Ok(()),
    }
}

async fn remove_gate(handle: &Handle, family: Family) -> Result<(), PlumbingError> {
    for rule in gate_rules(family) {
        let removed = handle.rule().del(rule).execute().await;
        tolerate(removed, libc::ENOENT).map_err(netlink(Piece::Gate(family)))?;
    }
    Ok(())
}

async fn remove_strays(handle: &Handle) -> Result<(), PlumbingError> {
    for family in families() {
        for rule in rules(handle, family).await?.into_iter().filter(leads_astray) {
            tracing::warn!(?rule, "a rule that leads captured packets elsewhere is removed");
            let removed = handle.rule().del(rule).execute().await;
            tolerate(removed, libc::ENOENT).map_err(netlink("remove a stray rule"))?;
        }
        for route in our_table(handle, family).await?.into_iter().filter(|route| !is_ours(route)) {
            tracing::warn!(?route, "a route that is none of ours is removed from our table");
            let removed = handle.route().del(route).execute().await;
            tolerate(removed, libc::ESRCH).map_err(netlink("remove a stray route"))?;
        }
    }
    Ok(())
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
    fn rules_of_another_kind_for_our_marks_are_strays_and_other_marks_are_not() {
        let stray = |alter: fn(&mut RuleMessage)| {
            let mut rule = our_rule(Family::V4, CAPTURED);
            alter(&mut rule);
            leads_astray(&rule)
        };
        assert!(!stray(|_| {}));
        assert!(stray(|rule| rule.header.table = MAIN_TABLE), "to another table");
        assert!(stray(|rule| rule.attributes[0] = RuleAttribute::Priority(100)), "before ours");
        assert!(!stray(|rule| {
            rule.header.table = MAIN_TABLE;
            rule.attributes[0] = RuleAttribute::Priority(32765);
        }));
        assert!(!stray(|rule| rule.attributes[1] = RuleAttribute::FwMark(0x80)), "a mark of the CNI");
    }

    #[test]
    fn a_gate_is_two_rules_in_their_order() {
        let [first, second] = gate_rules(Family::V6);
        let other = our_rule(Family::V6, CAPTURED);
        assert!(is_gate(&[other.clone(), first.clone(), second.clone()], Family::V6));
        assert!(!is_gate(&[second.clone(), first.clone()], Family::V6));
        assert!(!is_gate(&[first, other], Family::V6));
        assert!(!is_gate(&[second], Family::V6));
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
