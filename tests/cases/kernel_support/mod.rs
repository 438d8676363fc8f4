//! What the tests of the kernel plane have in common.

use rustix::thread::{CapabilitySet, CapabilitySets};

/// What a test cannot do without.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "each test file uses its own part")]
pub(crate) enum Privilege {
    /// Loading programs and making maps.
    Bpf,
    /// Namespaces, interfaces and mounts as well.
    Root,
}

/// Whether a test can run; if not, it says that it is skipped and why. With `MC_PROXY_REQUIRE_KERNEL=1` that is a failure.
pub(crate) fn needs(privilege: Privilege) -> bool {
    let effective = rustix::thread::capabilities(None).unwrap().effective;
    let wanted = match privilege {
        Privilege::Bpf => CapabilitySet::BPF | CapabilitySet::NET_ADMIN,
        Privilege::Root => CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN,
    };
    if effective.contains(wanted) {
        return true;
    }
    let missing = format!("{privilege:?} needs {wanted:?}, this process has {effective:?}");
    assert!(std::env::var_os("MC_PROXY_REQUIRE_KERNEL").is_none_or(|value| value != "1"), "{missing}");
    eprintln!("SKIPPED: {missing}; run the tests as root");
    false
}

/// This thread only: CAP_BPF and CAP_NET_ADMIN, so that the program for a process without CAP_PERFMON is loaded.
#[allow(dead_code, reason = "each test file uses its own part")]
pub(crate) fn keep_two_capabilities() {
    let two = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::DAC_OVERRIDE;
    let sets = CapabilitySets { effective: two, permitted: two, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).unwrap();
}

/// This thread only: another user with CAP_BPF and CAP_NET_ADMIN.
#[allow(dead_code, reason = "each test file uses its own part")]
pub(crate) fn become_nobody() {
    rustix::thread::set_keep_capabilities(true).unwrap();
    let nobody = rustix::process::Gid::from_raw(65534);
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_gid(nobody).unwrap();
    rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
    let two = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
    let sets = CapabilitySets { effective: two, permitted: two, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).unwrap();
}
