//! The messages and services of the wire, generated from `proto/` by `build.rs`.
//!
//! One module per protobuf package. Nothing outside this crate should need the ones that
//! [`convert`](crate::convert) and [`zds`](crate::zds) have typed forms of.

/// Declares the module of a protobuf package.
macro_rules! package {
    ($(#[$doc:meta])* $module:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            clippy::all,
            clippy::allow_attributes_without_reason,
            clippy::too_many_lines,
            clippy::wildcard_imports,
            reason = "generated code"
        )]
        pub mod $module {
            tonic::include_proto!($package);
        }
    };
}

package!(
    /// `istio.workload`: workloads and services.
    workload, "istio.workload"
);
package!(
    /// `istio.security`: authorization policies.
    security, "istio.security"
);
package!(
    /// `istio.workload.zds`: pods and their sockets.
    zds, "istio.workload.zds"
);
package!(
    /// `istio.v1.auth`: the certificate authority, client and server.
    ca, "istio.v1.auth"
);
package!(
    /// `envoy.service.discovery.v3`: delta xDS, client and server.
    discovery, "envoy.service.discovery.v3"
);
package!(
    /// `culvert.node`: our own resource types.
    node, "culvert.node"
);
