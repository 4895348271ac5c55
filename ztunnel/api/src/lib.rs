//! The wire: the messages of xDS, WDS, CA and ZDS, their codecs, and their conversion to `mesh` types; and the kernel's messages that
//! more than one of our programs speaks.
#![forbid(unsafe_code)]

pub mod ca;
pub mod causes;
pub mod channel;
pub mod convert;
pub mod delta;
pub mod dns;
pub mod key_exchange;
pub mod local;
pub mod proto;
pub mod seqpacket;
pub mod sock_diag;
pub mod type_url;
pub mod whole_file;
pub mod xds_client;
pub mod zds;
