//! How users are written for people.

use endcap_schemas::UserKey;

/// `user` for the default tenant, else `tenant/user`. Read back by [`UserKey`]'s `parse`, it is the same user: an id that holds a slash keeps
/// its tenant in front.
pub fn short(user: &UserKey) -> String {
    if user.tenant == UserKey::DEFAULT_TENANT && !user.user.contains('/') { user.user.clone() } else { user.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_read_back_as_the_same_user() {
        for (tenant, user) in [("default", "ada"), ("default", "a/b"), ("shop", "ada"), ("shop", "a/b")] {
            let key = UserKey { tenant: tenant.into(), user: user.into() };
            assert_eq!(short(&key).parse(), Ok(key));
        }
    }
}
