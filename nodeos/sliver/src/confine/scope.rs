//! The sliver's Landlock domain, for what namespaces do not keep apart.

use landlock::{CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope};

/// Enters a domain of its own, from which no process outside is sent a signal and no abstract Unix socket outside is reached:
/// their names belong to the network namespace, which slivers share. Within it everything goes.
///
/// Whoever is in two domains that do not descend from one another neither reaches nor traces the other, so that all of a sliver
/// has to be forked inside.
pub(super) fn enter() -> Result<(), RulesetError> {
    Ruleset::default()
        // A kernel without it is none for slivers.
        .set_compatibility(CompatLevel::HardRequirement)
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        // Setuid programs are part of a whole system; the right over the user namespace stands in for this.
        .no_new_privs(false)
        .restrict_self()?;
    Ok(())
}
