//! What keeps the kernel plane, or an interface, from working.

/// What is in the way, as a metric and a status line name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// Nothing asks for a kernel plane.
    Off,
    /// The process lacks a capability, or a directory is not its own.
    Privilege,
    /// The kernel is older than the program needs.
    KernelTooOld,
    /// There is no BPF file system where pins should be.
    FileSystem,
    /// Another daemon has the pins.
    InUse,
    /// The interface does not exist.
    NoInterface,
    /// Another XDP program is on the interface.
    ForeignProgram,
    /// The driver has no native XDP, and nothing else will do.
    NoNative,
    /// The driver has no native XDP for frames of this size.
    MtuTooLarge,
    /// Something else; the message tells.
    #[default]
    Other,
}

impl Obstacle {
    /// All, for a metric with one series each.
    pub const ALL: [Self; 10] = [
        Self::Off,
        Self::Privilege,
        Self::KernelTooOld,
        Self::FileSystem,
        Self::InUse,
        Self::NoInterface,
        Self::ForeignProgram,
        Self::NoNative,
        Self::MtuTooLarge,
        Self::Other,
    ];

    /// As it appears in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Privilege => "privilege",
            Self::KernelTooOld => "kernel_too_old",
            Self::FileSystem => "no_bpf_file_system",
            Self::InUse => "pins_in_use",
            Self::NoInterface => "no_interface",
            Self::ForeignProgram => "foreign_program",
            Self::NoNative => "no_native",
            Self::MtuTooLarge => "mtu_too_large",
            Self::Other => "other",
        }
    }
}

/// A refusal of the kernel, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct PlaneError {
    context: String,
    obstacle: Obstacle,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl PlaneError {
    /// An error that says what was tried, on what, and how to mend it.
    pub fn new(context: impl Into<String>) -> Self {
        Self { context: context.into(), obstacle: Obstacle::Other, source: None }
    }

    /// The same with a cause, of which it inherits the obstacle; a refusal of permission makes it one of privileges.
    pub fn caused(context: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let source = source.into();
        Self { context: context.into(), obstacle: obstacle(&*source), source: Some(source) }
    }

    /// The daemon lacks a right.
    pub fn privilege(context: impl Into<String>) -> Self {
        Self::new(context).because(Obstacle::Privilege)
    }

    /// The same with another obstacle.
    pub fn because(self, obstacle: Obstacle) -> Self {
        Self { obstacle, ..self }
    }

    /// What is in the way.
    pub fn obstacle(&self) -> Obstacle {
        self.obstacle
    }

    /// Whether the daemon lacks a right, so that starting it in another way would help.
    pub fn is_privilege(&self) -> bool {
        self.obstacle == Obstacle::Privilege
    }

    /// The message with its causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let message = error.to_string();
            // Some libraries repeat the cause in the message.
            if !text.ends_with(&message) {
                text = format!("{text}: {message}");
            }
            cause = error.source();
        }
        text
    }
}

/// What is at the bottom of an error.
fn obstacle(error: &(dyn std::error::Error + 'static)) -> Obstacle {
    let is_denied = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    if let Some(error) = error.downcast_ref::<PlaneError>() {
        error.obstacle
    } else if error.downcast_ref::<std::io::Error>().is_some_and(is_denied) {
        Obstacle::Privilege
    } else {
        error.source().map_or(Obstacle::Other, obstacle)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_is_at_the_bottom_counts() {
        let denied = PlaneError::caused("opening", io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(denied.is_privilege());
        assert!(PlaneError::caused("starting", denied).is_privilege());
        let foreign = PlaneError::new("occupied").because(Obstacle::ForeignProgram);
        let outer = PlaneError::caused("starting", foreign);
        assert_eq!((outer.obstacle(), outer.chain().as_str()), (Obstacle::ForeignProgram, "starting: occupied"));
    }

    #[test]
    fn every_obstacle_has_a_name_of_its_own() {
        for (index, one) in Obstacle::ALL.iter().enumerate() {
            assert!(Obstacle::ALL[..index].iter().all(|other| other.name() != one.name()));
        }
    }
}
