"""What a run tells people: events, progress, tables, plots, the report. Reads facts; decides nothing."""
