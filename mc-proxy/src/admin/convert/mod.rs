//! Messages of `mc_proxy.v1` to domain types and back. What is wrong with a message is said under the name of the field.

mod certificates;
mod firewall;
mod route;
mod status;

use std::{fmt, str::FromStr};

use tonic::Status;

pub(crate) use self::firewall::{action_to_proto, rule_to_proto};
pub(super) use self::{certificates::*, firewall::*, route::*, status::*};
use crate::control::ControlError;

/// Bytes of an error's text.
const MESSAGE_MAX: usize = 1024;

pub(super) fn max_connections(given: i64) -> Result<u64, Status> {
    u64::try_from(given).map_err(|_| invalid("max_connections", "must not be negative; 0 is unlimited"))
}

pub(super) fn control_error(error: ControlError) -> Status {
    match error {
        ControlError::Invalid(what) => {
            let (field, problem) = what.split_once(": ").unwrap_or(("request", &what));
            invalid(field, problem)
        }
        ControlError::NotFound(what) => Status::not_found(what),
        ControlError::Refused(why) => Status::failed_precondition(why),
        ControlError::Failed(why) => Status::internal(why),
        ControlError::Stopping => Status::unavailable(ControlError::Stopping.to_string()),
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(field: impl fmt::Display, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error: T::Err| invalid(field, error))
}

/// The text travels as a header, of which clients take a few kilobytes; it quotes what they sent.
pub(super) fn invalid(field: impl fmt::Display, problem: impl fmt::Display) -> Status {
    let mut text = format!("{field}: {problem}");
    if text.len() > MESSAGE_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_MAX));
        text.push('…');
    }
    Status::invalid_argument(text)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    pub(super) fn refusal<T: fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
        let status = result.unwrap_err();
        (status.code(), status.message().to_owned())
    }
}
