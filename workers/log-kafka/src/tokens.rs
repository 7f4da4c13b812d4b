//! Tokens of OAUTHBEARER: from a file that somebody else renews, for as long as they say that they are valid.
//!
//! A token's own claims are believed without a signature, as they decide nothing here but when the file is read again: the brokers check it.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
    ptr,
    time::Duration,
};

use rdkafka::{
    bindings::rd_kafka_oauthbearer_set_token,
    client::{Client, OAuthToken},
    types::RDKafkaRespErr,
};
use serde::Deserialize;
use thiserror::Error;

use crate::client::Watch;

/// Longest time that a token is taken for valid, whatever it says: its file is read again after four fifths of it.
const LIFETIME_MAX: Duration = Duration::from_secs(300);
/// Who a token is of, where it does not say.
const SOMEBODY: &str = "endcap";

/// No token.
#[derive(Debug, Error)]
pub(crate) enum NoToken {
    /// No file is configured.
    #[error("no `token_file` is configured")]
    NoFile,
    /// It cannot be read.
    #[error("cannot read the token file {}: {source}", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It holds nothing that can be a token. What it holds is not told.
    #[error("the token file {} holds no token: one line of visible ASCII characters is needed", .0.display())]
    NotOne(PathBuf),
    /// Its time is over.
    #[error("the token in {} has expired {ago_s} s ago: look after what renews it", .path.display())]
    Expired { path: PathBuf, ago_s: i64 },
    /// librdkafka does not take it.
    #[error("librdkafka takes no token (code {0})")]
    NotTaken(i32),
}

/// What is read of a token that is a JWT.
#[derive(Deserialize)]
struct Claims {
    /// Its end, s since 1970.
    exp: Option<f64>,
    /// Who it is of.
    sub: Option<String>,
}

/// The token that `path` holds at `now_ms`.
pub(crate) fn token_of(path: &Path, now_ms: i64) -> Result<OAuthToken, NoToken> {
    let unreadable = |source| NoToken::Unreadable { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let token = text.trim();
    // librdkafka repeats a token that it refuses for its characters.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(NoToken::NotOne(path.to_owned()));
    }
    let claims = claims_of(token);
    let own_end_ms = claims.as_ref().and_then(|claims| claims.exp).map(millis);
    let latest_ms = now_ms + i64::try_from(LIFETIME_MAX.as_millis()).unwrap_or(i64::MAX);
    let lifetime_ms = own_end_ms.map_or(latest_ms, |end_ms| end_ms.min(latest_ms));
    if lifetime_ms <= now_ms {
        return Err(NoToken::Expired { path: path.to_owned(), ago_s: (now_ms - lifetime_ms) / 1_000 });
    }
    let principal = claims.and_then(|claims| claims.sub).filter(|name| !name.contains('\0'));
    Ok(OAuthToken { token: token.to_owned(), principal_name: principal.unwrap_or_else(|| SOMEBODY.to_owned()), lifetime_ms })
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of floats ends at the ends of the range")]
fn millis(seconds: f64) -> i64 {
    (seconds * 1_000.0) as i64
}

/// The claims of a JWT; `None` for a token of another kind.
fn claims_of(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    serde_json::from_slice(&base64url(payload)?).ok()
}

/// Decodes base64 of the alphabet that is safe in addresses, without padding.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut held, mut bits) = (Vec::with_capacity(text.len() * 3 / 4), 0_u32, 0);
    for c in text.bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(six)) & 0xFFF;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xFF).ok()?);
        }
    }
    Some(bytes)
}

/// Gives `client` its token. Other clients ask for theirs when they are polled; one for administration cannot be polled, and its work is done
/// before a token runs out.
pub(crate) fn give(client: &Client<Watch>, token: &OAuthToken) -> Result<(), NoToken> {
    let text = |text: &str| CString::new(text).expect("a token and its principal hold no zero byte");
    let (value, principal) = (text(&token.token), text(&token.principal_name));
    let mut told = [0; 512]; // not passed on: it may hold the token
    // SAFETY: the client is alive for as long as it is borrowed, librdkafka copies both texts and writes at most as many bytes as it is told
    // that there are.
    let code = unsafe {
        rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            ptr::null_mut(),
            0,
            told.as_mut_ptr(),
            told.len(),
        )
    };
    if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(NoToken::NotTaken(code as i32)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"alg":"none"}`, then `{"sub":"anna","exp":1.5}`, without a signature.
    const SHORT: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm5hIiwiZXhwIjoxLjV9.";

    fn check(text: &str, now_ms: i64) -> Result<(String, String, i64), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, text).unwrap();
        let token = token_of(&path, now_ms).map_err(|error| error.to_string())?;
        Ok((token.token, token.principal_name, token.lifetime_ms))
    }

    #[test]
    fn a_token_is_valid_until_its_own_end_and_no_longer_than_five_minutes() {
        assert_eq!(check("abc\n", 1_000), Ok(("abc".into(), "endcap".into(), 301_000)));
        assert_eq!(check(SHORT, 1_000), Ok((SHORT.into(), "anna".into(), 1_500)));
        assert_eq!(check(SHORT, -1_000_000).unwrap().2, -700_000);
        assert_eq!(check("a.b.c", 1_000).unwrap().2, 301_000, "what is no JWT says nothing of its end");
    }

    #[test]
    fn what_is_no_token_or_has_expired_is_refused_in_words_that_do_not_repeat_it() {
        for (text, part) in [(" \n", "holds no token"), ("hunter2\u{7}x", "holds no token"), ("hunter2 x", "holds no token")] {
            let refused = check(text, 0).unwrap_err();
            assert!(refused.contains(part) && !refused.contains("hunter2"), "{refused}");
        }
        let refused = check(SHORT, 9_500).unwrap_err();
        assert!(refused.contains("has expired 8 s ago") && !refused.contains("eyJ"), "{refused}");
        assert!(token_of(Path::new("/nowhere/at/all"), 0).err().unwrap().to_string().contains("cannot read the token file"));
    }
}
