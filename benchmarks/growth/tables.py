def compute(records): return {}
def markdown(result): return ""
