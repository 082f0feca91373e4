"""Faster products and fused layers for CPUs."""
