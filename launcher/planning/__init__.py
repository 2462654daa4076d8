"""What each training stage of a job takes on given machines: for the launcher's `plan`. No torch, no GPU."""
