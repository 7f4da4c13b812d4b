//! How users are written for people.

use endcap_schemas::UserKey;

/// `user` for the default tenant, else `tenant/user`.
pub fn short(user: &UserKey) -> String {
    if user.tenant == UserKey::DEFAULT_TENANT { user.user.clone() } else { user.to_string() }
}
