"""The last module that the forkserver imports: what is there by then is never collected.

Else every forked process, at its first full collection, would look at a million objects of the
libraries and so copy the pages that they lie in, which all processes could share.
"""

import gc

gc.collect()
gc.freeze()
