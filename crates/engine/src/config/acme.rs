//! `zones.NAME.acme`: who signs certificates for names of other domains.

use serde::Deserialize;
use wire::gateway::edge::Acme;

use super::ConfigError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcmeSection {
    email: String,
    directory: Option<String>,
}

/// Both end up in the proxy's configuration, where they must be one plain word each.
pub(super) fn check(key: &str, section: &AcmeSection) -> Result<Acme, ConfigError> {
    let plain = |text: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._:/@-".contains(c);
        (3..=200).contains(&text.len()) && text.chars().all(legal)
    };
    let email = &section.email;
    if !plain(email) || email.split('@').filter(|part| !part.is_empty()).count() != 2 {
        return Err(ConfigError::new(
            format!("{key}.email: {email:?} is not an address of letters, digits and . _ -"),
            "write one that somebody reads: the authority warns there, like admin@example.com",
        ));
    }
    if let Some(directory) = &section.directory
        && !(plain(directory) && directory.starts_with("https://"))
    {
        return Err(ConfigError::new(
            format!("{key}.directory: {directory:?} is not an https URL of plain characters"),
            "leave it out for the proxy's own choice, or write the directory of your authority",
        ));
    }
    Ok(Acme {
        email: email.clone(),
        directory: section.directory.clone(),
    })
}
