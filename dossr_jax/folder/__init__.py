"""Folders of photos: which files are restored, under which names, and what becomes of each.

The steps of a run, a module each: finding, maps, naming, planning (with the manifest of earlier
runs), preview, run (with sharing among processes, and progress), report.
"""
