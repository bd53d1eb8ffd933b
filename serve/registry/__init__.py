"""Versions of a bundle side by side, one of them current, and the change from one to another while requests come.

REGISTRY/<version>/     a complete bundle that nobody changes any more, named by its version
REGISTRY/CURRENT        the version that is to be served, one line
REGISTRY/HISTORY        what was current, the latest first: where a rollback goes
REGISTRY/.lock          held by whoever publishes, activates or rolls back
REGISTRY/.version-*     a version that is being copied, or is on its way out
REGISTRY/profiles/, REGISTRY/state/
                        what is known of people, if it is not kept elsewhere: of no version, so that it can be
                        erased once and outlives every change of version

A version holds no users (see SECURITY.md on rare items) and is copied whole. Profiles and state are never copied.
"""
