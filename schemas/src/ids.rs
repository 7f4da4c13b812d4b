//! Whose row, whose record.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Key of every record and row: a tenant and one of its users. Written `tenant/user`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UserKey {
    /// The marketplace that the user belongs to; `default` where none is given.
    pub tenant: String,
    /// The user within the tenant.
    pub user: String,
}

impl UserKey {
    /// Tenant of users that name none.
    pub const DEFAULT_TENANT: &str = "default";

    /// A user of the default tenant.
    pub fn of(user: impl Into<String>) -> Self {
        Self { tenant: Self::DEFAULT_TENANT.to_owned(), user: user.into() }
    }

    /// The user as people read it: `user` for the default tenant, else `tenant/user`. Parsed, it is the same user: an id that holds a slash keeps
    /// its tenant in front.
    pub fn short(&self) -> String {
        if self.tenant == Self::DEFAULT_TENANT && !self.user.contains('/') { self.user.clone() } else { self.to_string() }
    }

    /// The user that `text` names: `tenant/user`; without a slash one of the default tenant.
    pub fn named(text: &str) -> Self {
        match text.split_once('/') {
            Some((tenant, user)) => Self { tenant: tenant.to_owned(), user: user.to_owned() },
            None => Self::of(text),
        }
    }

    /// What it is written of, in order.
    fn parts(&self) -> [&str; 3] {
        [&self.tenant, "/", &self.user]
    }

    /// The key as it is displayed, in one allocation and without a formatter: every record that is passed on has one.
    pub fn written(&self) -> String {
        self.parts().concat()
    }

    /// Whether `text` is this key as it is written.
    pub fn is_written(&self, text: &str) -> bool {
        text.strip_prefix(self.tenant.as_str()).and_then(|rest| rest.strip_prefix('/')) == Some(self.user.as_str())
    }
}

impl fmt::Display for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts().iter().try_for_each(|part| f.write_str(part))
    }
}

impl FromStr for UserKey {
    type Err = std::convert::Infallible;

    /// As [`UserKey::named`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::named(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_by_the_name_and_by_the_key() {
        for (tenant, user) in [("default", "ada"), ("default", "a/b"), ("shop", "ada"), ("shop", "a/b")] {
            let key = UserKey { tenant: tenant.into(), user: user.into() };
            assert!(key.is_written(&key.to_string()) && !key.is_written(user) && !key.is_written(&format!("{key}a")));
            assert_eq!(key.written(), key.to_string());
            assert_eq!(key.short().parse(), Ok(key));
        }
    }
}
