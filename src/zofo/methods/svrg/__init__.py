"""MeZO-SVRG: zeroth-order steps with a control variate at an anchor."""
