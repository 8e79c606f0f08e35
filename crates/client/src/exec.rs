//! `POST /instances/{name}/exec`: runs a command and carries its bytes through JSON unchanged.
//!
//! Never sends a command twice: when the answer is lost, that is the result.

use std::time::Duration;

use api::InstanceName;
use api::exec::{Encoding, ExecRequest, ExecResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;

use crate::connection::{Call, Client};
use crate::error::Error;

/// Most that a command can be given on its standard input, in bytes.
pub const STDIN_LIMIT: usize = 8 << 20;

/// The server's deadline for a command that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// What the server may take beyond the command's own deadline to answer.
const GRACE: Duration = Duration::from_secs(30);
/// Two streams of 8 MiB, where JSON writes one control character as six bytes, and the rest.
const ANSWER_LIMIT: usize = 2 * 6 * (8 << 20) + (1 << 20);

impl Client {
    /// Runs a command in an instance and waits for its end. `Error::outcome_unknown` tells whether
    /// it may have run although there is no result.
    pub async fn exec(
        &self,
        instance: &InstanceName,
        request: &ExecRequest,
    ) -> Result<ExecResult, Error> {
        let path = ["instances", instance.as_str(), "exec"];
        let mut call = Call::new(Method::POST, &path);
        call.deadline = request
            .timeout_ms
            .map_or(DEFAULT_TIMEOUT, Duration::from_millis)
            .saturating_add(GRACE);
        call.answer_limit = ANSWER_LIMIT;
        self.json_with(call, request).await
    }
}

/// How bytes are written in a request: as text if they are UTF-8, else as base64.
pub fn encoded(bytes: Vec<u8>) -> (String, Encoding) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, Encoding::Utf8),
        Err(e) => (STANDARD.encode(e.as_bytes()), Encoding::Base64),
    }
}

/// The bytes of a stream in a result; an error when it is not the base64 it says it is.
pub fn bytes_of(text: String, encoding: Encoding) -> Result<Vec<u8>, base64::DecodeError> {
    match encoding {
        Encoding::Utf8 => Ok(text.into_bytes()),
        Encoding::Base64 => STANDARD.decode(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(
            encoded(b"a\n\0\r".to_vec()),
            ("a\n\0\r".to_owned(), Encoding::Utf8)
        );
        assert_eq!(encoded(vec![0xff]), ("/w==".to_owned(), Encoding::Base64));
        assert!(bytes_of("*".to_owned(), Encoding::Base64).is_err());
    }

    proptest! {
        #[test]
        fn bytes_come_back_as_they_went(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (text, encoding) = encoded(bytes.clone());
            prop_assert_eq!(bytes_of(text, encoding), Ok(bytes));
        }
    }
}
