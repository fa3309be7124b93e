"""One element: claims pages one after the other, runs the task, and survives its crashes."""
