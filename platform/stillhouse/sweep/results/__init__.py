"""What a sweep produced: tables, trained students, exports, and the copy in MLflow."""
