//! The rows of the benchmark: what every proxy is asked to do.

use serde::Serialize;

use super::super::load::https::Kind;

/// One thing that every proxy is measured at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// HTTP/1.1 over 32 connections that stay open, 1 KiB.
    H1,
    /// HTTP/2, 16 requests at a time on each of 8 connections, 1 KiB.
    H2,
    /// HTTP/1.1 over 8 connections that stay open, 1 MiB.
    H1Large,
    /// A connection with a full handshake for each request.
    Handshake,
    /// A connection that resumes a session for each request.
    Resumed,
    /// Unary gRPC calls with 1 KiB each way, 16 at a time on each of 8 connections.
    Grpc,
}

impl Row {
    pub(super) const ALL: [Self; 6] = [Self::H1, Self::H2, Self::H1Large, Self::Handshake, Self::Resumed, Self::Grpc];

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::H1 => Kind::H1,
            Self::H2 => Kind::H2,
            Self::H1Large => Kind::H1Large,
            Self::Handshake => Kind::Handshake,
            Self::Resumed => Kind::Resumed,
            Self::Grpc => Kind::Grpc,
        }
    }

    pub(super) fn connections(self) -> u32 {
        match self {
            Self::H1 => 32,
            Self::H2 | Self::H1Large | Self::Grpc => 8,
            Self::Handshake | Self::Resumed => 16,
        }
    }

    /// Requests at a time on each connection.
    pub(super) fn streams(self) -> u32 {
        match self {
            Self::H2 | Self::Grpc => 16,
            Self::H1 | Self::H1Large | Self::Handshake | Self::Resumed => 1,
        }
    }

    /// Whether the bytes a second are a figure, too.
    pub(super) fn is_bulk(self) -> bool {
        self == Self::H1Large
    }

    /// As a report says it.
    pub(super) fn title(self) -> String {
        let connections = self.connections();
        match self {
            Self::H1 => format!("HTTP/1.1, 1 KiB, {connections} conn"),
            Self::H2 => format!("HTTP/2, 1 KiB, {connections} conn x {} streams", self.streams()),
            Self::H1Large => format!("HTTP/1.1, 1 MiB, {connections} conn"),
            Self::Handshake => format!("a full handshake each, {connections} at a time"),
            Self::Resumed => format!("a resumed handshake each, {connections} at a time"),
            Self::Grpc => format!("gRPC unary, 1 KiB, {connections} conn x {} streams", self.streams()),
        }
    }
}

impl std::fmt::Display for Row {
    /// As it is said on a command line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind().word())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn a_row_is_called_as_it_is_said() {
        for row in Row::ALL {
            assert_eq!(Row::from_str(&row.to_string(), false), Ok(row));
            assert_eq!(Kind::from_str(row.kind().word(), false), Ok(row.kind()));
            assert_eq!(serde_json::to_value(row).unwrap(), row.to_string());
        }
    }
}
