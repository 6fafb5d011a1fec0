"""The results of a sweep: tables, trained students, exports, and their copy in MLflow."""
