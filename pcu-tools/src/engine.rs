//! Performing an action on one node, and proving that it had an effect.
