"""Judging texts by HaluEval: is something in them made up?"""
