package metrics

import (
	"slices"

	dto "github.com/prometheus/client_model/go"
)

// closed are the labels that take no other values than those on the golden page.
var closed = []string{"outcome", "reason", "state"}

// shape is what expressions may rely on: the labels of each sample name, and for those
// that are closed sets their values, sorted. Values of others are nil.
type shape map[string]map[string][]string

func shapeOf(all map[string]*dto.MetricFamily) shape {
	s := shape{}
	for name, family := range all {
		for _, m := range family.GetMetric() {
			if h := m.GetHistogram(); h != nil {
				s.add(name+"_sum", m)
				s.add(name+"_count", m)
				s.add(name+"_bucket", m)
				s[name+"_bucket"]["le"] = nil
				continue
			}
			s.add(name, m)
		}
	}
	return s
}

func (s shape) add(name string, m *dto.Metric) {
	if s[name] == nil {
		s[name] = map[string][]string{}
	}
	for _, l := range m.GetLabel() {
		values, known := s[name][l.GetName()]
		if slices.Contains(closed, l.GetName()) {
			if i, found := slices.BinarySearch(values, l.GetValue()); !found {
				values = slices.Insert(values, i, l.GetValue())
			}
			s[name][l.GetName()] = values
		} else if !known {
			s[name][l.GetName()] = nil
		}
	}
}
