def compute(): return {}
