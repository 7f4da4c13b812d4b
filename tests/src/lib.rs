//! What must hold across crates: helpers of the suite under `suite/`.
