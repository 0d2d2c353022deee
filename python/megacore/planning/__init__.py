"""Planning a run before it starts: schedules of the pipeline, their time, memory and pictures."""
