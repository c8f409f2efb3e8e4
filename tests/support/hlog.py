"""Reads an interval log with HdrHistogram's own code: for each tag the number of values and some percentiles, as JSON.

Usage: hlog.py FILE
"""
import json
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

any_histogram = HdrHistogram(1, 3_600_000_000, 3)
reader = HistogramLogReader(sys.argv[1], any_histogram)
sums = {}
while (interval := reader.get_next_interval_histogram()) is not None:
    assert interval.get_end_time_stamp() >= interval.get_start_time_stamp() >= reader.get_start_time_sec() * 1000
    sums.setdefault(interval.get_tag(), HdrHistogram(1, 3_600_000_000, 3)).add(interval)
print(json.dumps({
    tag: {
        "count": sum.get_total_count(),
        "p50": sum.get_value_at_percentile(50),
        "p90": sum.get_value_at_percentile(90),
        "p99": sum.get_value_at_percentile(99),
        "max": sum.get_max_value(),
    }
    for tag, sum in sums.items()
}))
