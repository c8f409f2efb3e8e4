//! What ringest shows of itself. The flow never waits on anything here.
