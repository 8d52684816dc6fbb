//! Prompt cleaning and tokenising.
