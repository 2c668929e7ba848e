"""Facts that a record holds more than once, and where the copies disagree.

The keys of the practice stay, so a sensitivity manifest has every score in ``layer_sensitivity``
and again in ``sensitivity_ranking``, and sums and counts of what it lists. ``layer_sensitivity``,
``layers`` and ``groups`` are the truth. A record whose copies differ was changed by hand or
damaged; readers refuse it, because every copy is read by somebody.
"""
