//! Whether this process may have a kernel plane at all, found out before anything is touched.

use std::{fs, io, path::Path};

use rustix::thread::CapabilitySet;

use super::{Obstacle, PlaneError};

/// `BPF_FS_MAGIC`.
const BPF_FS: u64 = 0xcafe_4a11;

/// Checks capabilities and the file system of the pins, and makes the directory.
///
/// # Errors
/// With the remedy.
pub(super) fn prepare(pin_path: &Path) -> Result<(), PlaneError> {
    check_capabilities()?;
    check_file_system(pin_path)?;
    fs::create_dir_all(pin_path).map_err(|error| denied(pin_path, error))
}

fn check_capabilities() -> Result<(), PlaneError> {
    let sets = rustix::thread::capabilities(None)
        .map_err(|error| PlaneError::caused("reading this process's capabilities", error))?;
    let has = |capability| sets.effective.intersects(capability);
    // CAP_SYS_ADMIN contains CAP_BPF.
    let missing: Vec<_> =
        [(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN, "CAP_BPF"), (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN")]
            .into_iter()
            .filter_map(|(capability, name)| (!has(capability)).then_some(name))
            .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" and ");
    Err(PlaneError::privilege(format!(
        "XDP needs CAP_BPF and CAP_NET_ADMIN, and this process lacks {missing}: the systemd unit grants them with \
         AmbientCapabilities; by hand, start it with `setpriv --ambient-caps +bpf,+net_admin --inh-caps +bpf,+net_admin`"
    )))
}

/// Whether the verifier guards programs of this process against speculation.
pub(super) fn is_guarded() -> bool {
    let trusted = CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN;
    rustix::thread::capabilities(None).map_or(true, |sets| !sets.effective.intersects(trusted))
}

/// The first kernel whose verifier takes the program as it comes from kernel.org; distributions take things back.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// The release of a kernel that is too old to be expected to take the program.
pub(super) fn old_kernel() -> Option<String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    is_old(&release).then_some(release)
}

fn is_old(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < KERNEL_MIN)
}

/// The nearest directory that exists decides: below it everything is made by us.
fn check_file_system(pin_path: &Path) -> Result<(), PlaneError> {
    for ancestor in pin_path.ancestors() {
        match rustix::fs::statfs(ancestor) {
            Ok(stat) if u64::try_from(stat.f_type).is_ok_and(|kind| kind & 0xffff_ffff == BPF_FS) => return Ok(()),
            Ok(_) => {
                return Err(PlaneError::new(format!(
                    "xdp.pin_path {} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf`",
                    pin_path.display()
                ))
                .because(Obstacle::FileSystem));
            }
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(denied(pin_path, error.into())),
        }
    }
    Err(PlaneError::new(format!("xdp.pin_path {} must be an absolute path", pin_path.display())))
}

fn denied(pin_path: &Path, error: io::Error) -> PlaneError {
    let path = pin_path.display();
    let context = if error.kind() == io::ErrorKind::PermissionDenied {
        let user = rustix::process::geteuid().as_raw();
        format!("xdp.pin_path {path} is not this user's: as root, run `install -d -o {user} -m 0700 {path}`")
    } else {
        format!("making the directory xdp.pin_path {path}")
    };
    PlaneError::caused(context, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_15_are_old() {
        for (release, expected) in
            [("6.1.0-18-amd64", false), ("5.15.0", false), ("5.14.0-427.el9", true), ("4.19", true), ("odd", false)]
        {
            assert_eq!(is_old(release), expected, "{release}");
        }
    }

    #[test]
    fn a_common_file_system_is_refused_with_the_remedy() {
        let error = check_file_system(Path::new("/proc/mc-proxy/not/there")).unwrap_err();
        assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
        assert!(!error.is_privilege());
    }

    #[test]
    fn a_refused_directory_is_a_matter_of_privileges() {
        let error = denied(Path::new("/x"), io::ErrorKind::PermissionDenied.into());
        assert!(error.is_privilege());
        assert!(error.to_string().contains("install -d -o "), "{error}");
    }
}
