"""What an auditor does, offline: verify a scan's report, or where a VM has been.

It needs the extra ``audit`` (joserfc), which no guest does. All of the cryptography is in
``keyring.py``.
"""
