//! The way programs get onto a device before TCX (Linux 6.6): as filters of the `clsact` qdisc.
//!
//! Such a filter belongs to its device and stays when the agent goes; it is found again by our fixed priority and handle. All
//! functions act in the network namespace of the calling thread. The qdisc itself is left in place on removal, since others may use it.

use aya::programs::links::Link as _;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcMessage};

use super::error::AttachError;

/// First of all filters on the device.
const PRIORITY: u16 = 1;
/// Ours among the filters of that priority.
const HANDLE: TcHandle = TcHandle::new(0, 0x15c5);

/// Makes `program` the filter, in place of one of ours that stands there. Replacing is atomic.
pub(crate) fn ensure(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(device) {
        Ok(()) | Err(TcError::AlreadyAttached) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let standing = attached(device, direction)?;
    let link = match program.attach_to_link(standing) {
        Ok(link) => link,
        // None of ours there to replace.
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program.attach_with_options(device, direction, TcAttachOptions::Netlink(options))?
        }
    };
    // Dropping it would remove the filter.
    std::mem::forget(program.take_link(link)?);
    Ok(())
}

/// Removes our filter. That it is gone already is fine.
pub(crate) fn remove(device: &str, direction: TcAttachType) -> Result<(), ProgramError> {
    match attached(device, direction)?.detach() {
        Err(ProgramError::NetlinkError(error))
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Whether one of ours stands on any of these devices, by index.
pub(crate) async fn any_stands(places: &[(u32, TcAttachType)]) -> Result<bool, AttachError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(AttachError::Netns)?;
    tokio::spawn(connection);
    for (index, direction) in places {
        let filters = handle.traffic_filter(index.cast_signed()).get();
        let filters = if *direction == TcAttachType::Egress { filters.egress() } else { filters.ingress() };
        let mut filters = std::pin::pin!(filters.execute());
        while let Some(filter) = filters.try_next().await.map_err(AttachError::Filters)? {
            if is_ours(&filter) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn is_ours(filter: &TcMessage) -> bool {
    let kind = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "bpf");
    // The upper half says the priority, the lower one for which protocol.
    filter.header.info >> 16 == u32::from(PRIORITY)
        && u32::from(filter.header.handle) == u32::from(HANDLE)
        && filter.attributes.iter().any(kind)
}

fn attached(device: &str, direction: TcAttachType) -> Result<SchedClassifierLink, ProgramError> {
    SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None)
        .map_err(|error| TcError::IoError(error).into())
}
