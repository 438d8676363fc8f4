//! The admin API `mc_proxy.v1`: messages, client and server, generated from `mc_proxy/v1/admin.proto`.

#![forbid(unsafe_code)]

/// Package `mc_proxy.v1`.
#[allow(unreachable_pub, unused_qualifications, clippy::allow_attributes_without_reason, clippy::all)]
pub mod v1 {
    tonic::include_proto!("mc_proxy.v1");
}

/// Encoded `FileDescriptorSet` of the package, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("mc_proxy.v1");
