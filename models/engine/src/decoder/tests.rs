//! What a decoder must hold.
